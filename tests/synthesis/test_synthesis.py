"""Synthetic scans: reproducible, true to their labels, and as varied as real ones."""

import json
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.tissue import CLASSES, CLASSES_WITHOUT_RIM, Tissue, numbers_in
from leuko.preprocessing.slices import Preparation, prepare
from leuko.synthesis import images
from leuko.synthesis.acquisition import ExtractionSettings, extracted
from leuko.synthesis.anatomy import (
    FARTHEST_MM,
    INDEX,
    STRUCTURES,
    from_labels,
    from_mni152,
    load_heads,
    reshape,
)
from leuko.synthesis.images import synthesise, write_subjects
from leuko.synthesis.labels import Labelled, LabelSettings, RimSettings, _rims, truth
from leuko.synthesis.lesions import LesionSettings, PunctateSettings, _punctate, draw_lesions
from leuko.synthesis.random_fields import NoiseSettings, blurred, coarse_and_fine, smooth_noise
from leuko.synthesis.ranges import Range
from leuko.synthesis.sampling import Choice, Samples, SamplingSettings, choose, in_face
from leuko.synthesis.settings import SynthesisSettings
from leuko.volume import Volume
from phantoms import label_map

SIZE = (96, 96)


@pytest.fixture(scope="module")
def ball():
    return from_labels(label_map(), "ball")


def a_choice(**changes):
    return replace(
        Choice(
            axis=2, slices=12, thickness_mm=4.0, spacing_mm=4.0, parts=2, head=True, with_t1=True,
            ventricle_widening_mm=0.0, sulcal_filling_mm=0.0,
        ),
        **changes,
    )  # fmt: skip


def made(ball, seed=0, **changes):
    return synthesise(ball, seed, choice=a_choice(**changes), size=SIZE)


def test_an_anatomy_knows_what_labels_do_not_say(ball):
    names = {STRUCTURES[index].name for index in ball.structure.unique().tolist()}
    assert {"septum", "dura", "bone", "brain stem", "ventricle"} <= names
    assert (ball.other_ventricles_mm == FARTHEST_MM).all()  # it has none
    assert ball.lesions.sum() == 32
    assert ball.has_skull
    inside = ball.structure == INDEX["ventricle"]
    assert (ball.ventricle_mm[inside] < 0).all()
    assert (ball.ventricle_mm[ball.structure == INDEX["cortex"]] > 5).all()
    assert (ball.cortex_mm[ball.structure == INDEX["cortex"]] == 0).all()


def test_labels_without_a_brain_are_refused(tmp_path):
    with pytest.raises(LeukoError, match="csf lacks white matter"):
        from_labels(Volume(np.full((8, 8, 8), 24), np.eye(4), name="csf"), "csf")
    with pytest.raises(LeukoError, match="not whole numbers"):
        from_labels(label_map().with_data(label_map().data * 0.7), "scaled")
    with pytest.raises(LeukoError, match="no cortex lacks white matter, cortex"):
        from_labels(label_map().with_data(np.where(label_map().data == 3, 24, 0)), "no cortex")
    with pytest.raises(LeukoError, match="holds no label maps"):
        load_heads(tmp_path)


def test_a_folder_of_label_maps_is_loaded(tmp_path):
    nifti.write(tmp_path / "ball.nii.gz", label_map())
    (head,) = load_heads(tmp_path)
    assert head.name == "ball"


def test_sulci_that_a_map_leaves_empty_hold_csf():
    labels = label_map()
    brain = np.where(labels.data >= 500, 0, labels.data)
    sulcus = np.zeros(brain.shape, bool)
    sulcus[32:35, 40:, 40:] = True
    opened = np.where(sulcus | (brain == 24), 0, brain)
    structure = from_labels(labels.with_data(opened), "aseg").structure.numpy()
    deep = sulcus & (np.linalg.norm(np.indices(brain.shape) - 35.5, axis=0) < 24)
    assert (structure[deep] == INDEX["csf"]).all()
    assert (structure[:, :, :4] == INDEX["air"]).all()


def test_the_mni_brain_has_its_parts():
    brain = from_mni152()
    counts = {
        STRUCTURES[k].name: n for k, n in enumerate(brain.structure.flatten().bincount().tolist())
    }
    assert not brain.has_skull
    assert 10_000 < counts["ventricle"] < 50_000  # mm3, of an adult
    assert 500_000 < counts["white"] + counts["cerebellar white"] < 800_000
    assert counts["cerebellar cortex"] > 50_000
    assert counts["brain stem"] > 10_000


@pytest.mark.parametrize("seed", range(12))
def test_lesions_lie_in_white_or_grey_matter(ball, seed):
    lesions = draw_lesions(ball, np.random.default_rng(seed), atlas=[torch.ones(182, 218, 182) > 0])
    places = {STRUCTURES[index].name for index in ball.structure[lesions].unique().tolist()}
    assert places <= {"white", "thalamus", "putamen", "brain stem", "cortex", "cerebellar white"}


def test_there_are_brains_without_lesions_and_with_many(ball):
    volumes = [draw_lesions(ball, np.random.default_rng(seed)).sum().item() for seed in range(40)]
    assert volumes.count(0) > 40 * LesionSettings().kinds["none"] / 4
    assert max(volumes) > 50 * min(v for v in volumes if v)


def test_lesions_of_the_atlas_are_transferred(ball):
    settings = LesionSettings(kinds={"transferred": 1.0}, punctate=PunctateSettings(probability=0))
    left = torch.zeros(182, 218, 182, dtype=torch.bool)
    left[:80] = True
    found = [
        draw_lesions(replace(ball, lesions=ball.lesions & False), np.random.default_rng(s),
                     atlas=[left], settings=settings) for s in range(6)
    ]  # fmt: skip
    for lesions in found:
        x = lesions.nonzero()[:, 0]
        assert (x < 34).all() or (x > 38).all()  # of one half, or flipped to the other


def test_one_seed_gives_one_scan(ball):
    first, again, other = (synthesise(ball, seed, size=SIZE) for seed in ([3, 4], [3, 4], [3, 5]))
    assert torch.equal(first.flair, again.flair)
    assert torch.equal(first.truth, again.truth)
    assert first.flair.shape != other.flair.shape or not torch.equal(first.flair, other.flair)


def test_a_changed_setting_changes_the_scan(ball):
    usual = made(ball, 3, head=False)
    faint = replace(LabelSettings(), rims=RimSettings(missing_probability=1))
    without_rims = synthesise(
        ball, 3, choice=a_choice(head=False), size=SIZE, settings=SynthesisSettings(labels=faint)
    )
    assert (usual.truth == Tissue.RIM).any()
    assert not (without_rims.truth == Tissue.RIM).any()
    sampling = SamplingSettings(axis_probabilities=(1.0, 0.0, 0.0), thickness_mm=Range(2, 3))
    choices = [choose(ball, np.random.default_rng(s), settings=sampling) for s in range(20)]
    assert {choice.axis for choice in choices} == {0}
    assert all(c.thickness_mm == 1 or 2 <= c.thickness_mm <= 3 for c in choices)


def leaves(settings, name=""):
    """The name and the value of each setting, of settings within settings too."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from leaves(value, key)
    else:
        yield name, settings


def test_ranges_are_ordered_and_probabilities_lie_between_0_and_1():
    settings = list(leaves(asdict(SynthesisSettings())))
    ranges = [value for _, value in settings if isinstance(value, Range)]
    parts = [value for name, value in settings if name.endswith("probability")]
    assert len(ranges) > 100
    assert len(parts) > 30
    assert all(low <= high for low, high in ranges)
    assert all(0 <= part <= 1 for part in parts)


def test_settings_are_read_back_from_json_unchanged():
    usual = SynthesisSettings()
    grey = {**usual.painting.flair.grey, "cortex": Range(1.1, 1.2)}
    flair = replace(usual.painting.flair, grey=grey, haze_px=Range(1, 2))
    changed = replace(
        usual,
        painting=replace(usual.painting, flair=flair),
        lesions=LesionSettings(kinds={"none": 1.0}),
    )
    for settings in (usual, changed):
        content = json.loads(json.dumps(asdict(settings)))
        assert SynthesisSettings.from_json(content) == settings
    assert SynthesisSettings.from_json({}) == usual
    with pytest.raises(AttributeError, match="colour"):
        SynthesisSettings.from_json({"noise": {"colour": 1}})


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("head", [True, False])
def test_scans_are_finite_and_labels_are_classes(ball, axis, head):
    scan = synthesise(ball, 5, choice=a_choice(axis=axis, head=head), size=SIZE)
    assert scan.flair.shape == scan.t1.shape == scan.truth.shape == (12, *SIZE)
    for image in (scan.flair, scan.t1):
        assert torch.isfinite(image).all()
        assert (image >= 0).all()
    assert scan.truth.max() < len(CLASSES)
    if not head:
        assert (scan.truth[scan.flair == 0] == Tissue.BACKGROUND).all()
        assert (scan.flair[scan.truth == Tissue.WHITE] > 0).all()


def test_the_sequences_do_what_they_do(ball):
    seen = []
    for seed in range(30):
        scan = made(ball, seed)
        flair, t1 = (
            [
                image[scan.truth == k].median().item()
                for k in (Tissue.CSF, Tissue.VENTRICLE, Tissue.WHITE)
            ]
            for image in (scan.flair, scan.t1)
        )
        assert flair[1] < flair[2]
        assert t1[1] < t1[2]
        lesion = scan.truth == Tissue.WMH
        if lesion.sum() > 100:
            seen.append(scan.flair[lesion].median().item() / flair[2])
    assert len(seen) > 5
    assert min(seen) > 1
    assert max(seen) > 1.4


def test_thickness_keeps_volumes(ball):
    thin = made(ball, 8, slices=48, thickness_mm=1.0, spacing_mm=1.0, parts=1)
    thick = made(ball, 8, slices=12, thickness_mm=4.0, spacing_mm=4.0, parts=4)
    for label in (Tissue.VENTRICLE, Tissue.WHITE):
        volumes = [(scan.truth == label).sum().item() * scan.spacing_mm for scan in (thin, thick)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.12)


def test_lesions_reach_up_to_narrowed_ventricles(ball):
    """No rim of white matter between the two."""
    beside = (ball.ventricle_mm >= 0) & (ball.ventricle_mm < 3) & (ball.structure == INDEX["white"])
    narrow = reshape(
        replace(ball, lesions=beside), ventricle_widening_mm=-1.5, sulcal_filling_mm=0.0
    )
    rim = (narrow.ventricle_mm >= 0) & (ball.ventricle_mm < 0)
    near = F.max_pool3d(beside.float()[None], 3, stride=1, padding=1)[0] > 0
    touched = rim & (narrow.structure == INDEX["white"]) & near
    assert touched.sum() > 100
    assert narrow.lesions[touched].all()
    wide = reshape(replace(ball, lesions=beside), ventricle_widening_mm=2.0, sulcal_filling_mm=0.0)
    assert 0 < wide.lesions.sum() < beside.sum()
    assert not (wide.lesions & (wide.structure == INDEX["ventricle"])).any()


def test_a_lesion_in_a_part_of_a_thick_slice_is_labelled_if_it_shows():
    """One sample of five does not, two do."""
    structure = torch.full((5, 16, 16), INDEX["white"])
    lesion = torch.zeros(5, 16, 16)
    lesion[1, 4:12, 4:12] = 1
    none = torch.zeros_like(lesion)
    choice = a_choice(slices=1, parts=5)
    one, _ = truth(structure, Labelled(lesion, none, none), choice, LabelSettings())
    lesion[2] = lesion[1]
    two, _ = truth(structure, Labelled(lesion, none, none), choice, LabelSettings())
    assert (one == Tissue.WHITE).all()
    assert (two == Tissue.WMH).sum() == 64


def test_a_label_ends_at_two_fifths_of_the_brightness_of_its_lesion():
    part = torch.linspace(0, 1, 101).expand(2, 8, 101)
    structure = torch.full(part.shape, INDEX["white"])
    labelled = Labelled(part, 0 * part, 0 * part)
    found, _ = truth(structure, labelled, a_choice(slices=2, parts=1), LabelSettings())
    assert part[found == Tissue.WMH].min() == pytest.approx(0.4, abs=0.011)
    assert part[found != Tissue.WMH].max() == pytest.approx(0.4, abs=0.011)


# Caps and rims


def beside_a_ventricle(back=0.5):
    """Samples of white matter to the right of a ventricle, a millimetre from column to column."""
    distance = (torch.arange(64.0) - 16).expand(4, 64, 64)
    structure = torch.where(distance < 0, INDEX["ventricle"], INDEX["white"])
    zero = torch.zeros_like(distance)
    return Samples(structure, distance, distance.clamp(min=0), zero, zero, zero + back)


def rims(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = partial(coarse_and_fine, samples.structure.shape, 1.0, generator, NoiseSettings())
    return _rims(samples, np.random.default_rng(seed), noise, RimSettings())


def test_rims_lie_along_ventricles_and_are_wider_at_the_horns():
    def mean_width(back):
        widths = []
        for seed in range(40):
            samples = beside_a_ventricle(back)
            part, excess = rims(samples, seed)
            assert not part[samples.cavity_mm > 5].any()
            assert not part[samples.structure == INDEX["ventricle"]].any()
            assert not excess[part == 0].any()
            widths.append(part.sum(dim=-1).mean().item())
        assert widths.count(0) >= 4  # not seen in every scan
        return np.mean(widths)

    middle = mean_width(0.5)
    assert 0.7 < middle < 2.5
    assert mean_width(0.1) > 1.4 * middle
    assert mean_width(0.9) > 1.4 * middle


def test_a_rim_is_labelled_where_it_is_seen_and_a_lesion_in_it_is_a_lesion():
    samples = beside_a_ventricle()
    rim = (samples.cavity_mm < 3).float()  # drawn over the ventricle too
    lesion = torch.zeros_like(rim)
    lesion[:, :32] = rim[:, :32]
    choice = a_choice(slices=4, parts=1)
    bright, _ = truth(samples.structure, Labelled(lesion, rim, 0.3 * rim), choice, LabelSettings())
    faint, _ = truth(
        samples.structure, Labelled(0 * lesion, rim, 0.05 * rim), choice, LabelSettings()
    )
    assert not (faint == Tissue.RIM).any()
    assert torch.equal(bright == Tissue.RIM, (samples.cavity_mm < 3) & (samples.ventricle_mm >= 0)
                       & (lesion == 0))  # fmt: skip
    assert torch.equal(bright == Tissue.WMH, lesion > 0)


def test_rims_of_scans_are_bright_and_lie_beside_ventricles(ball):
    seen = 0
    for seed in range(16):
        scan = made(replace(ball, lesions=ball.lesions & False), seed, head=False, slices=48,
                    thickness_mm=1.0, spacing_mm=1.0, parts=1)  # fmt: skip
        rim = scan.truth == Tissue.RIM
        if rim.sum() < 200:
            continue
        seen += 1
        cavity = (scan.truth == Tissue.VENTRICLE).float()[None]
        near = F.max_pool3d(cavity, 13, stride=1, padding=6)[0] > 0
        assert (near & rim).sum() > 0.97 * rim.sum()
        assert scan.flair[rim].median() > 1.05 * scan.flair[scan.truth == Tissue.WHITE].median()
    assert seen >= 5


def test_the_third_and_fourth_ventricle_have_rims_too():
    samples = beside_a_ventricle()
    third = samples._replace(
        structure=torch.where(samples.ventricle_mm < 0, INDEX["csf"], INDEX["white"]),
        ventricle_mm=torch.full_like(samples.ventricle_mm, 30),
    )
    widths = [rims(third, seed)[0].sum(dim=-1).mean().item() for seed in range(20)]
    assert np.mean(widths) > 0.5
    labels = label_map().data.copy()
    labels[34:38, 20:24, 30:34] = 15
    distance = from_labels(Volume(labels, np.eye(4), name="ball"), "ball").other_ventricles_mm
    assert (distance[34:38, 20:24, 30:34] == 0).all()
    assert distance[36, 19, 32] == 0.5
    assert from_mni152().other_ventricles_mm.min() == 0


def test_classes_have_their_numbers_in_models_that_lack_some():
    assert numbers_in(CLASSES) == list(range(7))
    assert numbers_in(CLASSES_WITHOUT_RIM) == [0, 1, 2, 3, 4, 4, 5]
    assert numbers_in(("background", "wmh")) == [0, 0, 0, 0, 0, 0, 1]


def test_punctate_lesions_are_small_and_deep(ball):
    generator = torch.Generator().manual_seed(0)
    for seed in range(8):
        points = _punctate(ball, np.random.default_rng(seed), generator, LesionSettings())
        assert 0 < points.sum() < 60 * 40
        assert not points[(ball.ventricle_mm <= 2) & (ball.structure == INDEX["white"])].any()


def test_every_lesion_is_bright_on_flair_and_some_have_cavities_dark_on_both(ball):
    large = (ball.structure == INDEX["white"]) & (ball.ventricle_mm > 3)
    ratios, cavities = [], 0
    for seed in range(24):
        scan = synthesise(
            replace(ball, lesions=large), seed, own_lesions=True, size=SIZE,
            choice=a_choice(head=False, thickness_mm=1.0, parts=1),
        )  # fmt: skip
        flair, t1 = (image[scan.truth == Tissue.WMH] for image in (scan.flair, scan.t1))
        ratios.append(flair.median() / scan.flair[scan.truth == Tissue.GREY].median())
        dark = flair < 0.5 * flair.median()
        if dark.float().mean() > 0.01:
            cavities += 1
            assert t1[dark].median() < t1.median()
    assert min(ratios) > 1
    assert 3 <= cavities <= 16


def test_defacing_blanks_what_lies_in_front_of_the_brain(ball):
    choice = a_choice(slices=60, thickness_mm=1.0, spacing_mm=1.0, parts=1)
    x, y, z = torch.meshgrid(*[torch.arange(72.0)] * 3, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).permute(2, 0, 1, 3)[6:66]
    face = in_face(ball, points, choice, SamplingSettings())
    structure = ball.structure.permute(2, 0, 1)[6:66]
    upper = slice(44, None)  # 38 mm above the lowest of the brain
    assert not face[upper][structure[upper] == INDEX["white"]].any()
    assert face[0, 36, 71]
    assert not face[:, 36, 0].any()


def test_ventricles_widen_and_narrow(ball):
    narrow, same, wide = (
        (made(ball, 1, ventricle_widening_mm=mm).truth == Tissue.VENTRICLE).sum().item()
        for mm in (-1.5, 0.0, 1.5)
    )
    assert 0 < narrow < same < wide


def test_cortex_fills_sulci(ball):
    same, thick = (
        (made(ball, 1, sulcal_filling_mm=mm).truth == Tissue.CSF).sum().item() for mm in (0.0, 1.2)
    )
    assert thick < same


def test_without_t1_its_channel_is_empty(ball):
    scan = made(ball, 2, with_t1=False)
    images, labels = scan.slices(Preparation(t1_optional=True))
    assert images.shape == (12, *SIZE, 3)
    assert labels.shape == (12, *SIZE)
    assert scan.t1 is None
    assert not images[..., 2].any()
    assert images[..., 1].any()


def test_slices_are_what_prepare_would_make(ball):
    """The shortcut of training and the way of real files meet."""
    scan = made(ball, 6, thickness_mm=4.0)
    volumes = scan.volumes()
    expected, placement = prepare(volumes["FLAIR"], volumes["T1"], Preparation())
    images, _ = scan.slices(Preparation())
    height, width = expected.shape[1:3]
    top, left = round(placement.rows.start), round(placement.columns.start)
    cut = images[:, max(0, top) : top + height, max(0, left) : left + width]
    kept = expected[:, max(0, -top) :, max(0, -left) :][:, : cut.shape[1], : cut.shape[2]]
    difference = np.abs(cut.astype(int) - kept)[..., 1:]
    assert np.percentile(difference, 99) <= 3


def test_a_choice_is_as_asked(ball):
    choices = [choose(ball, np.random.default_rng(seed)) for seed in range(60)]
    assert {c.axis for c in choices} == {0, 1, 2}
    assert {c.head for c in choices} == {c.with_t1 for c in choices} == {True, False}
    assert max(c.thickness_mm for c in choices) > 6
    assert all(c.spacing_mm >= 4 for c in choices)
    assert all(c.thickness_mm / c.parts <= 1.6 for c in choices)
    bare = replace(ball, structure=torch.where(ball.structure >= INDEX["bone"], 0, ball.structure))
    assert not any(choose(bare, np.random.default_rng(seed)).head for seed in range(20))


def test_subjects_are_written_on_one_grid(ball, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "choose", lambda *_, **__: a_choice(head=False))
    ((folder, volume_ml),) = write_subjects(tmp_path, [ball], number=1, seed=4)
    scans = {name: nifti.read(folder / f"{name}.nii.gz") for name in ("FLAIR", "T1", "tissue")}
    wmh = nifti.read_mask(folder / "wmh.nii.gz")
    for scan in scans.values():
        assert scan.shares_grid_with(wmh)
    assert volume_ml == pytest.approx(wmh.data.sum() * wmh.voxel_mm3 / 1000)
    np.testing.assert_array_equal(scans["tissue"].data == Tissue.WMH, wmh.data > 0)


def test_parcels_are_tissues_and_other_labels_are_refused(ball):
    labels = label_map()
    for parcel in (1015, 2035, 11101, 12175):
        parcels = np.where(labels.data == 3, parcel, labels.data)
        assert torch.equal(from_labels(labels.with_data(parcels), "p").structure, ball.structure)
    for parcel in (3001, 4035, 5002):
        parcels = np.where(labels.data == 2, parcel, labels.data)
        assert torch.equal(from_labels(labels.with_data(parcels), "p").structure, ball.structure)
    with pytest.raises(LeukoError, match="the label 999; expected"):
        from_labels(labels.with_data(np.where(labels.data == 3, 999, labels.data)), "other")
    with pytest.raises(LeukoError, match=r"voxels of 2.00 x 1.00 x 1.00 mm; expected 1 mm"):
        from_labels(Volume(labels.data, np.diag([2.0, 1, 1, 1]), name="ball"), "ball")


def test_noise_is_smooth_and_of_its_spread():
    generator = torch.Generator().manual_seed(0)
    noise = smooth_noise((40, 40, 40), 4, generator)
    assert noise.std() == pytest.approx(0.75, abs=0.1)
    assert noise.diff(dim=0).abs().mean() < 0.4 * noise.std()


def test_blur_keeps_what_is_even_and_spreads_a_point():
    assert torch.allclose(blurred(torch.ones(1, 9, 9), 2.0), torch.ones(1, 9, 9))
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    spread = blurred(point, 2.0)
    assert spread.sum() == pytest.approx(1, abs=1e-3)
    at = torch.arange(41.0) - 20
    assert (spread[0].sum(0) * at**2).sum().sqrt() == pytest.approx(2.0, rel=0.02)


def test_an_imperfect_mask_still_holds_the_brain():
    brain = torch.zeros(5, 64, 64)
    brain[:, 16:48, 16:48] = 1
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        kept = extracted(brain, np.random.default_rng(seed), generator, ExtractionSettings())
        assert kept[:, 22:42, 22:42].all()
        assert not kept[:, :6].any()
