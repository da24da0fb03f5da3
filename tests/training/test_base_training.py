"""The recipe base: slices of real scans, painted lesions, losses, starts, the training; and the
scripts beside it."""

import gzip
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import average
import base_data
import edges
import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import assert_one_line_error
from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.tissue import CLASSES
from leuko.model.card import ModelCard, load_card
from leuko.model.network import SIDE_MAPS, SpecialisedVGG, vgg16
from leuko.model.onnx_export import read_network
from leuko.training import (
    loop,
    losses,
    material,
    mixture,
    painted_lesions,
    plan,
    real_slices,
    recipes,
    storage,
)
from leuko.training.batches import Batch
from leuko.training.material import Item, Origin, Table, find_scans
from leuko.training.objective import mixed_losses, teacher_targets
from leuko.training.real_slices import IGNORED, NOT_WMH, PREPARATION, RIM, WMH, RealSlices
from leuko.training.recipes import BASE, Mixture, phase_at, with_rate
from leuko.training.settings import Settings
from leuko.training.tensorboard_log import FOLDER
from phantoms import label_map, make_phantom

SMALL = {"shape": (48, 56, 12), "spacing_mm": (3.0, 3.0, 8.0), "lesions": 10}
THIN = {"shape": (48, 56, 40), "spacing_mm": (3.0, 3.0, 3.0), "lesions": 10}


def write_scan(folder, seed, *, shape=None, **masks):
    """A made-up head and its masks, by name, each a function of its lesions."""
    head = make_phantom(np.random.default_rng(seed), **(shape or SMALL))
    folder.mkdir(parents=True)
    nifti.write(folder / "FLAIR.nii.gz", head.flair)
    for name, mask_of in masks.items():
        mask = np.asarray(mask_of(head.labels.data > 0), dtype=np.uint8)
        nifti.write(folder / f"{name}.nii.gz", head.labels.with_data(mask))
    return head


def item(folder):
    """The scan of a folder that `write_scan` made."""
    return next(scan for scan in find_scans(folder.parent, Table()) if scan.name == folder.name)


def right_half(mask):
    return mask & (np.arange(mask.shape[0]) >= mask.shape[0] // 2)[:, None, None]


def the_same(mask):
    return mask


# Slices of real scans


def test_both_masks_tell_rims_and_one_alone_does_not(tmp_path):
    head = write_scan(tmp_path / "a", 0, lesions=the_same, lesions_pathological=right_half)
    scan = real_slices.read_scan(item(tmp_path / "a"))
    lesions = head.labels.canonical().data > 0
    assert scan.rims_known
    np.testing.assert_array_equal(scan.labels == WMH, right_half(lesions))
    np.testing.assert_array_equal(scan.labels == RIM, lesions & ~right_half(lesions))
    for name in ("lesions", "lesions_pathological"):
        write_scan(tmp_path / name, 0, **{name: right_half})
        alone = real_slices.read_scan(item(tmp_path / name))
        assert not alone.rims_known
        np.testing.assert_array_equal(alone.labels, right_half(lesions) * WMH)
    write_scan(tmp_path / "none", 0)
    assert not real_slices.read_scan(item(tmp_path / "none")).labels.any()


def test_other_pathology_is_unknown(tmp_path):
    write_scan(tmp_path / "a", 0, lesions=lambda m: 1 * m + right_half(m))
    scan = real_slices.read_scan(item(tmp_path / "a"))
    assert (scan.labels == IGNORED).any()
    (slices,) = real_slices.scan_slices(scan)
    assert {NOT_WMH, WMH, IGNORED} == set(np.unique(slices.labels))


def test_thick_scans_are_cut_once_and_thin_ones_along_three_axes_and_made_thick(tmp_path):
    write_scan(tmp_path / "thick", 0, lesions=the_same)
    thick = real_slices.read_scan(item(tmp_path / "thick"))
    (slices,) = real_slices.scan_slices(thick)
    assert slices.images.shape[1:] == (*real_slices.CANVAS["head"], 3)
    assert 8 <= len(slices.images) <= 12
    assert not slices.sagittal.any()
    write_scan(tmp_path / "thin", 0, shape=THIN, lesions=the_same)
    thin = real_slices.read_scan(item(tmp_path / "thin"))
    parts = list(real_slices.scan_slices(thin))
    assert [part.sagittal.any() for part in parts] == [True, False, False]
    assert all(len(part.images) <= math.ceil(56 / 3) for part in parts)
    averaged = list(real_slices.thick_slices(thin))
    assert len(averaged) == 6
    share = [(part.labels == WMH).mean() for part in (real_slices.joined(parts), *averaged)]
    assert max(share) < 2.5 * min(share)


def test_averaging_keeps_the_mean_of_whole_slices():
    stack = np.arange(11 * 4, dtype=np.uint8).reshape(11, 2, 2)
    found = real_slices.averaged(stack, first=1, thickness=4)
    assert found.shape == (2, 2, 2)
    np.testing.assert_allclose(found[1], stack[5:9].mean(axis=0))


def test_slices_are_cut_or_padded_around_their_middle():
    slices = np.zeros((2, 6, 10, 3), np.uint8)
    slices[:, 3, 5] = 7
    found = real_slices.fitted(slices, (12, 4))
    assert found.shape == (2, 12, 4, 3)
    assert (found[:, 6, 2] == 7).all()
    assert real_slices.fitted(found, (6, 10)).sum() == slices.sum()


def test_painted_lesions_lie_in_white_matter_and_are_labelled_where_they_are_seen():
    class Model:
        card = type("card", (), {"classes": ("background", "white", "wmh")})

        def predict(self, images):
            white = (images[..., 1] > 90).astype(np.float32)
            return np.stack([1 - white, white, 0 * white], axis=1)

    images = np.zeros((6, 96, 96, 3), np.uint8)
    images[:, 16:80, 16:80, 1] = images[:, 16:80, 16:80, 2] = 100
    images[5] = 0  # no white matter
    labels = np.zeros(images.shape[:3], np.uint8)
    labels[:, 40:50, 40:50] = IGNORED
    known = np.ones(6, dtype=bool)
    slices = RealSlices(images, labels, ~known, known, np.full(6, "tabriz_1"))
    found = painted_lesions.painted(slices, Model())
    assert 3 <= len(found.images) < 6
    assert not found.rims_known.any()
    inside = images[:5, ..., 1].any(axis=0)
    new = found.labels == WMH
    assert new.any(axis=(1, 2)).all()
    assert not new[:, ~inside].any()
    assert (found.labels[:, 40:50, 40:50] == IGNORED).all()
    assert found.images[..., 1][new].min() > 105
    assert found.images[..., 1][~new].max() < found.images[..., 1][new].max()
    assert (found.images[..., 2][new] <= 100).all()


def test_a_spot_is_labelled_up_to_where_readers_draw_edges():
    excess = np.zeros((20, 40))
    excess[10] = np.linspace(0, 0.5, 40)
    labels = painted_lesions.reader_labels(excess)
    assert excess[labels].min() == pytest.approx(0.4 * 0.5, abs=0.02)
    assert not painted_lesions.reader_labels(excess * 0.3).any()  # a spot that nobody sees


# Edges of readers


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_edges_are_found_where_they_were_drawn(position):
    sharp = np.zeros((80, 80))
    sharp[30:50, 30:50] = 1
    soft = scipy.ndimage.gaussian_filter(sharp, 2.0)
    flair = 100 + 60 * soft
    mask = soft > position
    (found,) = edges.edges(flair, mask, ~mask, np.array([1.0, 1.0]))
    assert found == pytest.approx(position / np.percentile(soft[mask], 90), abs=0.06)
    faint = list(edges.edges(100 + 5 * soft, mask, ~mask, np.array([1.0, 1.0])))
    assert faint == []


# Losses


def sure(classes):
    return 30 * torch.nn.functional.one_hot(classes, len(CLASSES)).movedim(-1, 1).float()


def test_where_rims_are_unknown_a_rim_costs_nothing_and_where_they_are_known_it_does():
    white, rim, wmh = (CLASSES.index(name) for name in ("white", "rim", "wmh"))
    truth = torch.full((1, 8, 8), NOT_WMH)
    unknown, known = torch.tensor([False]), torch.tensor([True])
    for found in (white, rim):
        loss = losses.partial_labels_loss(sure(torch.full((1, 8, 8), found)), truth, unknown)
        assert loss.item() == pytest.approx(0, abs=1e-3)
    said = sure(torch.full((1, 8, 8), rim))
    assert losses.partial_labels_loss(said, truth, known).item() > 10
    assert losses.partial_labels_loss(said, torch.full_like(truth, RIM), known).item() < 1e-3
    assert losses.partial_labels_loss(said, torch.full_like(truth, WMH), unknown).item() > 10
    assert losses.partial_labels_loss(said, torch.full_like(truth, IGNORED), known).item() < 1e-3
    missed = sure(torch.full((1, 8, 8), wmh))
    assert losses.partial_labels_loss(missed, truth, unknown).item() > 10


def test_a_sure_answer_that_is_right_costs_nothing():
    classes = torch.randint(
        0, len(CLASSES), (2, 16, 16), generator=torch.Generator().manual_seed(1)
    )
    synthetic_loss = partial(losses.synthetic_loss, classes=classes, rim_weight=0.3)
    assert synthetic_loss(sure(classes)).item() < 1e-3
    assert losses.distillation_loss(sure(classes), sure(classes).softmax(1)).item() < 1e-3
    assert synthetic_loss(sure(classes.roll(3, 1))).item() > 5


def test_teachers_teach_all_but_labelled_slices():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    labels, classes = (torch.zeros(count, 16, 16, dtype=torch.long) for count in (1, 2))
    batch = Batch(images, labels, classes, None, torch.tensor([True]))
    teachers = [SpecialisedVGG(len(CLASSES), ((4, 4),)), SpecialisedVGG(6, ((4, 4),))]
    targets = teacher_targets(teachers, images[1:])
    assert targets.shape == (3, len(CLASSES), 16, 16)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3, 16, 16))
    wmh = [teacher(images[1:]).softmax(dim=1)[:, -1] for teacher in teachers]
    torch.testing.assert_close(targets[:, -1], (wmh[0] + wmh[1]) / 2)
    logits = torch.zeros(4, len(CLASSES), 16, 16)
    parts = mixed_losses(logits, batch, mixed=Mixture(), teachers=teachers)
    assert set(parts) == {"synthetic", "labelled", "unlabelled"}
    other = replace(batch, images=torch.cat([images[:1] + 9, images[1:]]))
    assert mixed_losses(logits, other, mixed=Mixture(), teachers=teachers) == parts
    alone = replace(batch, images=images[:3])
    assert set(mixed_losses(logits[:3], alone, mixed=Mixture())) == {"synthetic", "labelled"}


def test_slices_with_varied_acquisition_stay_in_their_range_and_some_lose_their_t1():
    images = 100 * torch.ones(40, 3, 32, 32) - 127
    found = mixture.vary_acquisition(images, torch.Generator().manual_seed(0)) + 127
    assert found.min() >= 0
    assert found.max() <= 255
    empty = (found[:, 2] == 0).all(dim=(1, 2)).float().mean()
    assert 0.15 < empty < 0.55
    assert (found[:, 1] > 0).all()


def test_sources_and_people_are_drawn_alike():
    scans = np.repeat(["tabriz_107130", "tabriz_112776", "tabriz_1", "tabriz_2"], 3)
    labels = np.zeros((12, 4, 4), np.uint8)
    labels[:2, 0, :2] = WMH
    known = scans == "tabriz_2"
    slices = RealSlices(np.zeros((12, 4, 4, 3), np.uint8), labels, known, known, scans)
    origins = {name: base_data.SOURCES.origin(name) for name in scans}
    alone, with_rims = mixture.grouped(slices, origins, rims_weight=0.7)
    assert (alone.weight, with_rims.weight) == (1, 0.7)
    assert sorted(len(every) for every, _ in alone.people) == [3, 6]
    assert sorted(len(shown) for _, shown in alone.people) == [0, 2]


# Sources


def images_of(names):
    return [Item(name, {}, base_data.SOURCES.origin(name)) for name in names]


def left_out(names, *leave):
    return {found.name for found in material._left_out(images_of(names), leave)}


def test_sources_scans_and_people_are_left_out():
    names = ("tabriz_1", "tabriz_107130", "tabriz_112776", "ljubljana_1", "head03", "head04")
    assert left_out(names) == {"head04"}  # its weight is 0
    assert left_out(names, "tabriz") == {"head04", *names[:3]}
    assert left_out(names, "tabriz_112776") == {"head04", *names[1:3]}  # one person
    assert left_out(names, "ljubljana_1", "head03") == {"head04", "ljubljana_1", "head03"}
    with pytest.raises(LeukoError, match="--leave tabrizz matches no scan, person, source"):
        left_out(names, "tabrizz")
    with pytest.raises(LeukoError, match="--leave '' matches no scan"):
        material._left_out([Item("anna", {}, Origin(person="anna"))], [""])


def test_an_unlisted_scan_and_a_malformed_table_are_refused(tmp_path):
    write_scan(tmp_path / "elsewhere_1", 0, lesions=the_same)
    with pytest.raises(LeukoError, match="elsewhere_1 matches no row of"):
        find_scans(tmp_path, base_data.SOURCES)
    table = tmp_path / "table.tsv"
    for text, said in (
        ("name\tsource\n", "expected the columns name, source, person, weight, credit"),
        ("name\tsource\tperson\tweight\tcredit\n", "and 0 rows"),
        ("name\tsource\tperson\tweight\tcredit\na\tb\tc\tmuch\td\n", "weight of a is 'much'"),
        ("name\tsource\tperson\tweight\tcredit\na\tb\tc\t1\td\te\n", "row of a has more cells"),
    ):
        table.write_text(text)
        with pytest.raises(LeukoError, match=re.escape(said)):
            Table.read(table)
    assert Table().origin("anna") == Origin(person="anna")
    assert base_data.person("mslesseg_P14_3") == "mslesseg_P14"
    assert base_data.HELD_OUT == ("head04", "head12", "head18")


def test_label_maps_are_distinct_files_of_a_folder(tmp_path):
    with pytest.raises(LeukoError, match="is not a folder"):
        material._images(tmp_path / "nowhere", Table())
    with pytest.raises(LeukoError, match="is not a folder"):
        find_scans(tmp_path / "nowhere", Table())
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(LeukoError, match="have the same name"):
        material._images(tmp_path, Table())


def test_a_run_is_not_resumed_with_another_label_map(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"one")
    found = material.Material([], [], material._images(tmp_path, Table()), [])
    record = {"subjects": found.described(), "label_hashes": found.label_hashes}
    found.require_unchanged(record)
    (tmp_path / "a.nii.gz").write_bytes(b"two")
    with pytest.raises(LeukoError, match=r"^heads/a: the files .* changed"):
        found.require_unchanged(record)


def test_a_table_of_sources_may_begin_with_a_byte_order_mark(tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("name\tsource\tperson\tweight\tcredit\nanna\tours\t\t\t\n", "utf-8-sig")
    assert Table.read(table).origin("anna") == Origin("ours", "anna")


def test_every_credit_of_a_source_is_stated():
    scans = [
        Item(name, {}, Origin("ours", name, credit=credit))
        for name, credit in (("a", ""), ("b", "X, CC BY"), ("c", "Y, CC0"), ("d", "X, CC BY"))
    ]
    found = material.Material(scans, [], [], [])
    assert found.credits.endswith("4 labelled scans of ours (X, CC BY; Y, CC0)")


def test_the_message_about_an_unlabelled_scan_names_the_scan(tmp_path):
    write_scan(tmp_path / "anna", 0)
    nifti.write(tmp_path / "anna" / "FLAIR.nii.gz", make_phantom(np.random.default_rng(0)).labels)
    scan = item(tmp_path / "anna")
    with pytest.raises(LeukoError, match=r"^anna: "):
        real_slices.unlabelled(scan)


# Starts


def test_a_model_without_rims_gets_the_class_and_keeps_the_others():
    torch.manual_seed(0)
    old, new = SpecialisedVGG(6, vgg16(0.0625)), SpecialisedVGG(7, vgg16(0.0625))
    new.load_state_dict(storage.with_rims(old.state_dict()))
    image = torch.randn(1, 3, 32, 32)
    before, after = old(image), new(image)
    torch.testing.assert_close(after[:, [0, 1, 2, 3, 4, 6]], before)
    assert storage.with_rims(new.state_dict()).keys() == new.state_dict().keys()


def test_weights_in_8_bits_are_read(tmp_path):
    network = SpecialisedVGG(7, vgg16(0.0625))
    stored = {}
    for name, value in network.state_dict().items():
        scale = (value.abs().amax() / 127).clamp(min=1e-9)
        stored |= {name: (value / scale).round().to(torch.int8), f"{name}.scale": scale}
    save_file(stored, tmp_path / "weights.safetensors")
    packed = tmp_path / "weights.safetensors.gz"
    packed.write_bytes(gzip.compress((tmp_path / "weights.safetensors").read_bytes()))
    for path in (tmp_path / "weights.safetensors", packed):
        weights = storage.read_weights(str(path))
        assert weights[:3] == (7, vgg16(0.0625), SIDE_MAPS)
        for name, value in network.state_dict().items():
            assert (weights.state[name] - value).abs().max() <= value.abs().max() / 200 + 1e-9
    compressed = packed.read_bytes()
    damaged = compressed[:20] + bytes(8) + compressed[28:]
    for content in (b"nothing", damaged, compressed[:-20]):
        packed.write_bytes(content)
        with pytest.raises(LeukoError, match="does not contain the weights of a network"):
            storage.read_weights(str(packed))


def test_models_are_averaged_and_what_each_has_seen_is_kept(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, scans in zip(folders, (["1", "2"], ["2", "3"]), strict=True):
        write_model(folder)
        card = load_card(folder)
        network = read_network(folder, card)
        with torch.no_grad():
            network.fusion.bias.fill_(float(scans[0]))
        training = {"steps": 5, "data": f"scans {scans}", "scans": scans, "left_out": ["x", *scans]}
        storage.save_model(folder, network.state_dict(), replace(card, training=training))
    monkeypatch.setattr("sys.argv", ["average.py", *map(str, folders), str(tmp_path / "mean")])
    average.main()
    card = load_card(tmp_path / "mean")
    assert read_network(tmp_path / "mean", card).fusion.bias.tolist() == [1.5] * len(CLASSES)
    assert card.training["scans"] == ["1", "2", "3"]
    assert card.training["left_out"] == ["2", "x"]
    assert card.training["data"].count("scans") == 2


# The training


def test_the_rate_warms_up_stays_and_falls_to_a_twentieth():
    steps = 500
    for step in range(steps):
        done = (step + 0.5) / steps
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * max(0.0, (done - 0.4) / 0.6))) / 2
        _, rate = phase_at(BASE, step, steps)
        assert rate == pytest.approx(1e-4 * min(1.0, done / 0.05) * cosine)
        assert phase_at(with_rate(BASE, 2e-4), step, steps)[1] == pytest.approx(2 * rate)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two heads, three labelled scans of two sources, an unlabelled pair, a model to start from."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "heads").mkdir()
    for number in (1, 4):  # the second is held out
        nifti.write(folder / "heads" / f"head{number:02d}.nii.gz", label_map())
    write_scan(folder / "real" / "tabriz_1", 0, lesions=the_same, lesions_pathological=right_half)
    write_scan(folder / "real" / "tabriz_2", 1, lesions_pathological=the_same)
    write_scan(folder / "real" / "ljubljana_1", 2, lesions=the_same)
    write_scan(folder / "pairs" / "patient01_study1", 3)
    write_model(folder / "start")
    return folder


def write_model(folder):
    """A small model with rims, not trained."""
    stages = vgg16(0.0625)
    training = {"steps": 0, "data": "none", "scans": ["another"]}
    card = ModelCard("start", CLASSES, PREPARATION, stages, SIDE_MAPS, training)
    torch.manual_seed(0)
    storage.save_model(folder, SpecialisedVGG(len(CLASSES), stages).state_dict(), card)


@pytest.fixture
def command(leuko, data, monkeypatch):
    """`leuko train --recipe base` with all kinds of slices, and few synthetic scans."""
    heads_alone = replace(BASE.mixture, scans_kept=2, scans_per_step=0.5, head_part=1.0)
    few = replace(BASE, mixture=heads_alone)
    monkeypatch.setitem(recipes.RECIPES, "base", few)
    monkeypatch.setattr(mixture, "DEFAULT", str(data / "start"))  # tells white matter, quickly

    def run(out, *options):
        return leuko(
            "train", data / "real", "-o", out, "--recipe", "base", "--steps", 2, "--threads", 1,
            "--heads", data / "heads", "--unlabelled", data / "pairs",
            "--sources", Path(base_data.__file__).with_name("sources.tsv"), "--leave", "ljubljana",
            "--init", data / "start", "--teacher", data / "start", *options,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_a_training_with_all_kinds_of_slices_resumes_bit_for_bit(command, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, out, err = command(whole)
    assert code == 0, err
    assert "data    3 scans of 3 people, 2 for training, 1 unlabelled" in out
    assert not (whole / "material").exists()

    late = iter([False, True])
    with monkeypatch.context() as patched:  # the time is up after a step
        patched.setattr(loop, "_is_late", lambda *_: next(late))
        code, out, err = command(broken, "--minutes", 9)
    assert code == 0, err
    assert f"stopped; resume with leuko train --resume {broken}" in out
    assert load_card(broken).training["steps"] == 1  # a model all the while
    code, out, err = command(broken)  # the same command resumes
    assert code == 0, err
    assert "step 2/2" in err
    cards = [load_card(run) for run in (whole, broken)]
    assert cards[0].weights_sha256 == cards[1].weights_sha256
    assert cards[0].training == cards[1].training
    said = cards[0].training
    assert "2 labelled scans of tabriz (Mahdi-Bashiri" in said["data"]
    assert "1 label maps of heads (SynthSeg" in said["data"]
    assert "ljubljana" not in said["data"]
    assert "1 unlabelled scans of clinical pairs (Lesjak et al." in said["data"]
    assert said["left_out"] == ["ljubljana"]
    assert (said["init"], said["teachers"]) == ("start", ["start"])
    assert len(said["scans"]) == 3
    assert said["from"]["scans"] == ["another"]  # of the model that it started from
    assert (said["steps"], said["images_per_step"]) == (2, 6)
    assert cards[0].three_planes
    assert read_network(whole, cards[0])(torch.zeros(1, 3, 32, 32)).shape[1] == len(CLASSES)
    assert_one_line_error(command(whole, "--rate", 1), "is not empty")
    logged = EventAccumulator(str(whole / FOLDER))
    logged.Reload()
    assert {"loss", "synthetic", "labelled", "unlabelled"} <= set(logged.Tags()["scalars"])


def test_no_real_slices_are_drawn_without_real_scans():
    nothing = mixture.Prepared({}, {}, np.zeros((0, 192, 240, 3), np.uint8))
    real = mixture.RealSliceSampler(nothing, {}, BASE, Mixture(), torch.device("cpu"))
    assert real.count("head") == real.unlabelled_count("head") == 0


def test_scans_that_changed_since_the_start_are_not_resumed_with(data, tmp_path):
    scans = tmp_path / "real"
    shutil.copytree(data / "real", scans)
    settings = Settings(
        data=str(scans), recipe=BASE, classes=CLASSES, preparation=PREPARATION,
        stages=vgg16(0.0625), init="none", held_out=0.0, heads=str(data / "heads"),
    )  # fmt: skip
    plan.start(tmp_path / "run", settings)
    (scans / "tabriz_2" / "lesions_pathological.nii.gz").unlink()
    with pytest.raises(LeukoError, match="tabriz_2: the files or the row in the table"):
        loop.fit(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--atlas", "."), "--atlas does not work with --recipe modern"),
        (("--leave", "a"), "--leave does not work with --recipe modern"),
        (("--recipe", "base", "--folds", 2), "use --recipe modern or xu2017 or adapt"),
        (("--recipe", "base", "--unlabelled", "."), "add --teacher MODEL"),
    ],
)
def test_options_of_another_recipe_are_refused(leuko, data, tmp_path, options, said):
    answer = leuko("train", data / "real", "-o", tmp_path / "run", *options)
    assert_one_line_error(answer, said)
