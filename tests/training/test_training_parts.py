"""Recipes, losses, augmentation and data: what the training loop is made of."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL
from leuko.errors import LeukoError
from leuko.evaluation.labels import IGNORED
from leuko.io import nifti
from leuko.io.tissue import CLASSES, CLASSES_WITHOUT_RIM, Tissue
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.anatomy import from_labels
from leuko.synthesis.settings import SynthesisSettings
from leuko.training import dataset, losses, replay
from leuko.training.augmentation import augment
from leuko.training.batches import Batches
from leuko.training.dataset import Subject, find_subjects, load, people, person, split
from leuko.training.losses import cross_entropy_dice, summed_cross_entropy
from leuko.training.recipes import MODERN, XU2017, Augmentation, phase_at
from leuko.training.replay import Rehearsal
from phantoms import label_map, make_phantom

STILL = Augmentation(scale=(1.0, 1.0), rotation_degrees=0)


def rates(recipe, steps):
    return [phase_at(recipe, step, steps) for step in range(steps)]


# Recipes


def test_the_papers_recipe_has_the_papers_numbers():
    assert (XU2017.steps, XU2017.images_per_step, XU2017.weight_decay) == (150_000, 20, 0.0005)
    assert XU2017.optimiser == "sgd"
    for step, rate, momentum in [
        (0, 1e-8, 0.99),
        (49_999, 1e-8, 0.99),
        (50_000, 1e-9, 0.999),
        (149_999, 1e-9, 0.999),
    ]:
        phase, found = phase_at(XU2017, step, XU2017.steps)
        assert found == pytest.approx(rate)
        assert phase.momentum == momentum
    assert not any((XU2017.augmentation.flip, XU2017.augmentation.gain, XU2017.augmentation.gamma))


def test_what_the_paper_leaves_open_follows_the_solvers_of_its_family():
    assert XU2017.loss == "summed-cross-entropy"
    assert (XU2017.bias_rate, XU2017.bias_decay, XU2017.fusion_rate) == (2, 0, 0.01)
    assert (MODERN.bias_rate, MODERN.bias_decay, MODERN.fusion_rate) == (1, 1, 1)


def test_a_shorter_training_keeps_the_proportions():
    momenta = [phase.momentum for phase, _ in rates(XU2017, 30)]
    assert momenta == [0.99] * 10 + [0.999] * 20


def test_the_modern_rate_warms_up_and_falls_to_zero():
    found = [rate for _, rate in rates(MODERN, 200)]
    peak = int(np.argmax(found))
    assert peak in (9, 10)  # the twentieth part of 200 steps
    assert np.all(np.diff(found[: peak + 1]) > 0)
    assert np.all(np.diff(found[peak:]) < 0)
    assert found[peak] == pytest.approx(3e-4, rel=0.01)
    assert 0 < found[-1] < 1e-7


# Losses


def test_the_summed_loss_is_a_sum_over_pixels_and_a_mean_over_images():
    logits = torch.zeros(2, 2, 4, 4)
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    assert losses.summed_cross_entropy(logits, labels).item() == pytest.approx(16 * math.log(2))


@pytest.mark.parametrize("loss", [losses.summed_cross_entropy, losses.cross_entropy_dice])
def test_unknown_pixels_do_not_count(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    labels = torch.randint(0, 2, (2, 4, 4))
    labels[:, 0] = IGNORED
    value = loss(logits, labels)
    value.backward()
    assert logits.grad[:, :, 0].abs().max() == 0
    assert logits.grad[:, :, 1:].abs().max() > 0
    changed = logits.detach().clone()
    changed[:, :, 0] = 50
    assert loss(changed, labels).item() == pytest.approx(value.item())


def test_a_perfect_answer_costs_nothing_and_the_reverse_much():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 1:3, 1:3] = 1
    sure = 50 * torch.stack([1 - labels, labels], dim=1).float()
    assert losses.cross_entropy_dice(sure, labels).item() == pytest.approx(0, abs=1e-5)
    assert losses.cross_entropy_dice(-sure, labels).item() > 10


def test_a_batch_of_unknown_pixels_has_a_finite_loss():
    labels = torch.full((1, 4, 4), IGNORED)
    assert torch.isfinite(losses.cross_entropy_dice(torch.randn(1, 2, 4, 4), labels))


# Augmentation


def changed(images, labels, augmentation, *, seed=0, channels="flair-t1-residue", sagittal=False):
    return augment(
        images,
        labels,
        augmentation,
        channels=channels,
        sagittal=torch.full((len(images),), sagittal),
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture
def batch():
    """Two slices with a bright square that is also the label."""
    images = torch.full((2, 48, 32, 3), 90, dtype=torch.uint8)
    images[:, 20:30, 10:20] = 200
    return images, (images[..., 0] == 200).to(torch.uint8)


def test_no_change_is_the_slice_minus_127(batch):
    images, labels = batch
    found, truth = changed(images, labels, STILL)
    torch.testing.assert_close(found, images.permute(0, 3, 1, 2).float() - 127, rtol=0, atol=1e-3)
    assert torch.equal(truth, labels.long())


def test_the_same_generator_gives_the_same_batch(batch):
    first, second = (changed(*batch, MODERN.augmentation, seed=3)[0] for _ in range(2))
    other = changed(*batch, MODERN.augmentation, seed=4)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", range(5))
def test_labels_move_with_their_image(batch, seed):
    moving = Augmentation(scale=(0.8, 1.25), rotation_degrees=30, flip=True)
    found, truth = changed(*batch, moving, seed=seed)
    bright = found[:, 0] + 127 > 145  # half-way between square and surround
    assert (bright != (truth == 1)).float().mean() < 0.02


def test_scaling_changes_the_area_by_its_square(batch):
    larger = Augmentation(scale=(1.5, 1.5), rotation_degrees=0)
    _, truth = changed(*batch, larger)
    assert truth.sum().item() == pytest.approx(2 * 100 * 1.5**2, rel=0.1)


def test_turning_keeps_shape_on_a_slice_that_is_not_square(batch):
    turned = Augmentation(scale=(1.0, 1.0), rotation_degrees=45)
    _, truth = changed(*batch, turned, seed=1)
    assert truth.sum().item() == pytest.approx(200, rel=0.05)
    rows, columns = torch.nonzero(truth[0]).float().std(dim=0)
    assert rows.item() == pytest.approx(columns.item(), rel=0.1)


@pytest.mark.parametrize(("sagittal", "flipped"), [(False, {True, False}), (True, {False})])
def test_the_front_of_a_head_never_becomes_its_back(batch, sagittal, flipped):
    images, labels = batch
    images, labels = images.clone(), labels.clone()
    labels[:, 24:] = 0  # the label lies in the first half of the rows
    still = Augmentation(scale=(1.0, 1.0), rotation_degrees=0, flip=True)
    seen = {
        bool(one[24:].any())
        for seed in range(8)
        for one in changed(images, labels, still, seed=seed, sagittal=sagittal)[1]
    }
    assert seen == flipped


def test_residue_and_flair_change_together(batch):
    gain = Augmentation(scale=(1.0, 1.0), rotation_degrees=0, gain=0.3)
    found = changed(*batch, gain)[0] + 127
    torch.testing.assert_close(found[:, 0], found[:, 1])
    assert not torch.allclose(found[:, 1], found[:, 2])


def test_colours_stay_in_8_bit_and_air_stays_dark(batch):
    images, labels = batch
    images[:, :5] = 0
    wild = Augmentation((1.0, 1.0), 0, gain=0.5, gamma=0.5, noise_grey=80)
    found = changed(images, labels, wild)[0] + 127
    assert found.min() >= 0
    assert found.max() <= 255
    assert found[:, :, :5].max() == 0


# Data


def write_subject(folder, phantom, label_name="wmh"):
    phantom.write(folder)
    (folder / "wmh.nii.gz").rename(folder / f"{label_name}.nii.gz")


@pytest.mark.parametrize("label_name", ["wmh", "lesions"])
def test_subject_folders_are_found(tmp_path, phantom, label_name):
    write_subject(tmp_path / "anna", phantom, label_name)
    (tmp_path / "unlabelled").mkdir()
    nifti.write(tmp_path / "unlabelled" / "FLAIR.nii.gz", phantom.flair)
    (subject,) = find_subjects(tmp_path)
    assert subject.name == "anna"
    assert subject.labels == tmp_path / "anna" / f"{label_name}.nii.gz"


@pytest.mark.parametrize("site", ["Utrecht", "Amsterdam/GE3T"])
def test_the_challenges_folders_are_found(tmp_path, phantom, site, caplog):
    home = tmp_path / site / "50"
    phantom.write(home / "pre")
    phantom.write(home / "orig")
    (home / "orig" / "wmh.nii.gz").unlink()
    (home / "pre" / "wmh.nii.gz").rename(home / "wmh.nii.gz")
    (subject,) = find_subjects(tmp_path)
    assert subject.name == f"{site}/50"
    assert not caplog.records
    assert subject.flair == home / "pre" / "FLAIR.nii.gz"


def test_linked_subject_folders_are_found(tmp_path, phantom):
    write_subject(tmp_path / "store" / "b7", phantom)
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "anna").symlink_to(tmp_path / "store" / "b7")
    assert [s.name for s in find_subjects(tmp_path / "cohort")] == ["anna"]


def test_scans_without_labels_are_named(tmp_path, phantom, caplog):
    for name in ("anna", "bert", "cleo"):
        write_subject(tmp_path / name, phantom)
    for name in ("bert", "cleo"):
        (tmp_path / name / "wmh.nii.gz").unlink()
    assert [s.name for s in find_subjects(tmp_path)] == ["anna"]
    for name in ("bert", "cleo"):
        assert f"{name} has images but no labels (wmh or lesions); it is not used" in caplog.text


def test_images_of_another_layout_are_named(tmp_path, phantom, caplog):
    write_subject(tmp_path / "anna", phantom)
    deep = tmp_path / "a" / "b" / "c" / "d" / "e"
    write_subject(deep, phantom)
    bids = tmp_path / "sub-01" / "anat"
    bids.mkdir(parents=True)
    nifti.write(bids / "sub-01_FLAIR.nii.gz", phantom.flair)
    assert [s.name for s in find_subjects(tmp_path)] == ["a/b/c/d/e", "anna"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{bids} has images but no labels (wmh or lesions); it is not used"
    ]


def test_labels_without_flair_are_named(tmp_path, phantom, caplog):
    write_subject(tmp_path / "anna", phantom)
    write_subject(tmp_path / "bert", phantom)
    (tmp_path / "bert" / "FLAIR.nii.gz").unlink()
    assert [s.name for s in find_subjects(tmp_path)] == ["anna"]
    assert "bert has labels but no FLAIR; it is not used" in caplog.text


def test_what_a_killed_process_left_behind_is_no_subject(tmp_path, phantom):
    write_subject(tmp_path / "anna", phantom)
    write_subject(tmp_path / ".leuko-scratch", phantom)
    assert [s.name for s in find_subjects(tmp_path)] == ["anna"]


def test_a_folder_without_labelled_subject_is_an_error(tmp_path):
    with pytest.raises(LeukoError, match="holds no labelled subject; expected"):
        find_subjects(tmp_path)
    with pytest.raises(LeukoError, match="is not a folder"):
        find_subjects(tmp_path / "nowhere")


@pytest.mark.parametrize("other", ["lesions.nii.gz", "wmh.nii"])
def test_two_label_files_of_a_subject_are_named(tmp_path, phantom, other):
    write_subject(tmp_path / "anna", phantom)
    nifti.write(tmp_path / "anna" / other, phantom.labels)
    first, second = sorted(str(tmp_path / "anna" / name) for name in (other, "wmh.nii.gz"))
    with pytest.raises(LeukoError) as error:
        find_subjects(tmp_path)
    expected = f"anna has several label files, {first} and {second}; keep one of them"
    assert str(error.value) == expected


def test_a_split_keeps_every_subject_once(heads):
    subjects = find_subjects(heads)
    train, measured = split(subjects, held_out=0.4, seed=0)
    assert len(measured) == 2
    assert sorted(s.name for s in train + measured) == [s.name for s in subjects]
    assert split(subjects, held_out=0.4, seed=0) == (train, measured)
    assert split(subjects[:1], held_out=0.9, seed=0) == (subjects[:1], [])


def test_scans_of_one_person_are_on_one_side_of_a_split():
    names = [f"site/sub-{k}/ses-{visit}" for k in range(10) for visit in (1, 2)]
    subjects = [Subject(name, Path(), None, Path()) for name in names]
    for seed in range(5):
        train, measured = (people(part) for part in split(subjects, held_out=0.3, seed=seed))
        assert (len(train), len(measured)) == (7, 3)
        assert not set(train) & set(measured)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("sub-01/ses-1", "sub-01"),
        ("sub-01_ses-1", "sub-01"),
        ("Utrecht/sub-7/ses-2", "Utrecht/sub-7"),
        ("Utrecht/50", "Utrecht/50"),
        ("anna", "anna"),
        ("anna/ses-1", "anna"),
        ("ses-1/sub-01", "sub-01"),
        ("Utrecht/ses-1/50", "Utrecht/50"),
        ("ses-1", ""),
    ],
)
def test_a_name_says_whose_scan_it_is(name, whose):
    assert person(name) == whose


def test_other_pathology_is_unknown_to_the_loss(tmp_path, phantom):
    labels = phantom.labels.data.copy()
    lesion = np.argwhere(labels)[0]
    labels[tuple(lesion)] = 2
    write_subject(tmp_path / "anna", phantom)
    nifti.write(tmp_path / "anna" / "wmh.nii.gz", phantom.labels.with_data(labels))
    slices = load(find_subjects(tmp_path), Preparation(pixel_mm=3.0))
    assert (slices.labels == IGNORED).sum() == 1
    assert (slices.labels == 1).sum() == phantom.labels.data.sum() - 1


def test_subjects_of_different_size_share_a_canvas(tmp_path, phantom):
    write_subject(tmp_path / "a", phantom)
    wide = make_phantom(np.random.default_rng(1), **SMALL | {"spacing_mm": (2.0, 2.0, 8.0)})
    write_subject(tmp_path / "b", wide)
    slices = load(find_subjects(tmp_path), Preparation(pixel_mm=2.0))
    assert slices.images.shape[:3] == slices.labels.shape
    assert len(slices.images) == 2 * SMALL["shape"][2]
    assert slices.images.shape[1] % 16 == slices.images.shape[2] % 16 == 0


def test_a_model_of_three_planes_sees_thin_slices_along_each(tmp_path):
    cube = make_phantom(np.random.default_rng(0), shape=(48, 56, 44), spacing_mm=(3.0, 3.0, 3.0))
    write_subject(tmp_path / "thin", cube)
    one, three = (
        load(find_subjects(tmp_path), Preparation(pixel_mm=3.0), three_planes=planes)
        for planes in (False, True)
    )
    assert (len(one.images), len(three.images)) == (44, 48 + 56 + 44)
    assert not one.sagittal.any()
    assert three.sagittal.sum() == 48
    lesions = cube.labels.data.sum()
    assert (one.labels == 1).sum() == lesions
    assert (three.labels == 1).sum() == 3 * lesions


def test_thick_slices_are_seen_along_one_axis_alone(tmp_path, phantom):
    write_subject(tmp_path / "thick", phantom)
    slices = load(find_subjects(tmp_path), Preparation(pixel_mm=3.0), three_planes=True)
    assert len(slices.images) == SMALL["shape"][2]


def test_labels_on_another_grid_are_an_error(tmp_path, phantom):
    write_subject(tmp_path / "anna", phantom)
    other = make_phantom(np.random.default_rng(0), **SMALL | {"spacing_mm": (3.0, 3.0, 7.0)})
    nifti.write(tmp_path / "anna" / "wmh.nii.gz", other.labels)
    with pytest.raises(LeukoError, match=r"FLAIR.nii.gz \(48x56x12, 3x3x8 mm.*same voxel grid"):
        load(find_subjects(tmp_path), Preparation())


def test_lesion_aware_drawing_shows_more_lesions():
    labels = np.zeros((100, 16, 16), dtype=np.uint8)
    labels[:3, 4, 4] = 1
    sagittal = np.zeros(100, dtype=bool)
    slices = dataset.Slices(np.zeros((100, 16, 16, 3), dtype=np.uint8), labels, sagittal)
    rng = np.random.default_rng(0)
    seldom = np.isin(slices.draw(2000, lesion_part=0.0, rng=rng), [0, 1, 2]).mean()
    often = np.isin(slices.draw(2000, lesion_part=0.5, rng=rng), [0, 1, 2]).mean()
    assert seldom == pytest.approx(0.03, abs=0.02)
    assert often == pytest.approx(0.515, abs=0.04)
    none = dataset.Slices(slices.images, np.zeros_like(labels), sagittal)
    assert len(none.draw(5, lesion_part=1.0, rng=rng)) == 5


# What a step sees


def made_batches(recipe, rehearsal=None, **options):
    """Slices whose grey value is their number, 1 to 40."""
    numbers = np.arange(1, 41, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(numbers, (40, 16, 16, 3)).copy()
    slices = dataset.Slices(images, np.zeros((40, 16, 16), np.uint8), np.zeros(40, dtype=bool))
    return Batches(
        slices,
        replace(recipe, augmentation=STILL),
        channels="flair-t1-residue",
        seed=5,
        device=torch.device("cpu"),
        rehearsal=rehearsal,
        **options,
    )


def greys(batch):
    return (batch.images[:, 1, 8, 8] + 127).round().int().tolist()


def test_the_shares_of_a_step_are_all_of_it():
    recipe = replace(MODERN, synthetic_part=0.25)
    whole = made_batches(recipe, MadeUp(), classes=CLASSES).draw(3)
    for count in (1, 2, 4, 8):
        shares = [whole.share(rank, count) for rank in range(count)]
        assert {len(share.images) for share in shares} == {8 // count}
        for share in shares:
            assert len(share.images) == len(share.labels) + len(share.classes) == len(share.wmh)
            assert torch.equal(
                share.wmh, torch.cat([share.labels == 1, share.classes == Tissue.WMH])
            )
        assert sorted(g for share in shares for g in greys(share)) == sorted(greys(whole))
    assert sum(len(whole.share(rank, 4).classes) for rank in range(4)) == 2


def test_a_step_is_the_same_whenever_it_is_drawn():
    one, other = (made_batches(MODERN) for _ in range(2))
    other.draw(0)
    assert torch.equal(one.draw(2).images, other.draw(2).images)
    assert greys(one.draw(2)) != greys(one.draw(3))


def test_what_is_drawn_first_says_nothing_of_what_is_drawn_next():
    """The slices, the synthetic ones and their moves come from one stream, not from equal ones."""

    class Asked:
        def draw(self, _, count, *, rng, **__):
            asked.append(rng.random())
            return MadeUp().draw(0, count)

    asked = []
    batches = made_batches(replace(MODERN, synthetic_part=0.25), Asked())
    for step in range(3):
        batches.draw(step)
        assert asked[step] != np.random.default_rng([5, step]).random()


class MadeUp:
    """Synthetic slices of grey value 200: a row of CSF, one of a rim, WMH below."""

    def draw(self, _step, count, **_):
        classes = np.full((count, 16, 16), Tissue.WMH, np.uint8)
        classes[:, 0], classes[:, 1] = Tissue.CSF, Tissue.RIM
        return np.full((count, 16, 16, 3), 200, np.uint8), classes, np.zeros(count, dtype=bool)


def test_synthetic_images_are_their_part_of_a_step():
    recipe = replace(MODERN, synthetic_part=0.25)
    batch = made_batches(recipe, MadeUp(), classes=CLASSES).draw(0)
    assert (len(batch.labels), len(batch.classes)) == (6, 2)
    assert greys(batch).count(200) == 2
    assert set(batch.classes.unique().tolist()) == {Tissue.CSF, Tissue.RIM, Tissue.WMH}


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        (CLASSES, [1, 5, 6]),
        (CLASSES_WITHOUT_RIM, [1, 4, 5]),
        (("background", "wmh"), [0, 0, 1]),
    ],
)
def test_a_model_is_told_the_classes_that_it_knows(classes, numbers):
    recipe = replace(MODERN, synthetic_part=0.5)
    batch = made_batches(recipe, MadeUp(), classes=classes).draw(0)
    for shown in batch.classes:
        assert shown[:3, 0].tolist() == numbers
    assert torch.equal(batch.classes == numbers[-1], batch.wmh[len(batch.labels) :])


@pytest.mark.parametrize("loss_of", [cross_entropy_dice, summed_cross_entropy])
def test_shares_that_are_summed_have_the_loss_and_the_gradient_of_all(loss_of):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, 5, 7), torch.randint(0, 3, (6, 5, 7))
    labels[0, 0] = IGNORED
    whole = logits.clone().requires_grad_()
    loss = loss_of(whole, labels)
    loss.backward()
    parts = [logits[:4], logits[4:], logits[:0]]  # a process may have no such image
    sums = []
    for part, known in zip(parts, (labels[:4], labels[4:], labels[:0]), strict=True):
        loss_of(part, known, lambda own: sums.append(own) or own)
    total = torch.stack(sums).sum(dim=0)
    gradients = []
    for part, known in zip(parts, (labels[:4], labels[4:], labels[:0]), strict=True):
        own = part.clone().requires_grad_()
        shared = loss_of(own, known, lambda mine: total + (mine - mine.detach()))
        assert shared.item() == pytest.approx(loss.item(), rel=1e-6)
        shared.backward()
        gradients.append(own.grad)
    torch.testing.assert_close(torch.cat(gradients), whole.grad)


def test_synthetic_slices_are_drawn_from_scans_that_change(monkeypatch):
    monkeypatch.setattr(replay, "SCANS", 1)
    anatomy = from_labels(label_map(), "ball")
    size = (96, 96)
    draws = []
    for _ in range(2):
        rehearsal = Rehearsal([anatomy], Preparation(), size, seed=4, settings=SynthesisSettings())
        draws.append(
            [
                rehearsal.draw(step, 4, lesion_part=1.0, rng=np.random.default_rng(0))
                for step in (0, 49, 50)
            ]
        )
        rehearsal.close()
    for first, second in zip(*draws, strict=True):
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one, other)
    first, same, next_ = (images for images, _, _ in draws[0])
    assert np.array_equal(first, same)
    assert not np.array_equal(first, next_)
    images, classes, sagittal = draws[0][0]
    assert images.shape == (4, *size, 3)
    assert classes.shape == (4, *size)
    assert sagittal.shape == (4,)
    assert (classes == Tissue.WMH).any(axis=(1, 2)).all()
