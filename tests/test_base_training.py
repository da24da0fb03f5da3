"""The scripts that make the bundled model: slices of real scans, edges of readers, the training."""

import json
import math
from dataclasses import replace
from itertools import chain, repeat
from types import SimpleNamespace

import average
import base_losses
import edges
import numpy as np
import pytest
import real_slices
import scipy.ndimage
import torch
import train_base
from base_batches import Batch, Real, grouped, reacquired
from base_losses import losses, real_loss
from real_slices import IGNORED, NOT_WMH, PREPARATION, RIM, WMH, Slices

from leuko.io import nifti
from leuko.model.card import ModelCard, load_card
from leuko.model.network import SIDE_MAPS, SpecialisedVGG, vgg16
from leuko.model.onnx_export import read_network
from leuko.synthesis.anatomy import CLASSES
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


def right_half(mask):
    return mask & (np.arange(mask.shape[0]) >= mask.shape[0] // 2)[:, None, None]


def the_same(mask):
    return mask


# Slices of real scans


def test_both_masks_tell_rims_and_one_alone_does_not(tmp_path):
    head = write_scan(tmp_path / "a", 0, lesions=the_same, lesions_pathological=right_half)
    scan = real_slices.read_scan(tmp_path / "a")
    lesions = head.labels.canonical().data > 0
    assert scan.rims_known
    np.testing.assert_array_equal(scan.labels == WMH, right_half(lesions))
    np.testing.assert_array_equal(scan.labels == RIM, lesions & ~right_half(lesions))
    for name in ("lesions", "lesions_pathological"):
        write_scan(tmp_path / name, 0, **{name: right_half})
        alone = real_slices.read_scan(tmp_path / name)
        assert not alone.rims_known
        np.testing.assert_array_equal(alone.labels, right_half(lesions) * WMH)
    write_scan(tmp_path / "none", 0)
    assert not real_slices.read_scan(tmp_path / "none").labels.any()


def test_other_pathology_is_unknown(tmp_path):
    write_scan(tmp_path / "a", 0, lesions=lambda m: 1 * m + right_half(m))
    scan = real_slices.read_scan(tmp_path / "a")
    assert (scan.labels == IGNORED).any()
    (slices,) = real_slices.scan_slices(scan)
    assert {NOT_WMH, WMH, IGNORED} == set(np.unique(slices.labels))


def test_thick_scans_are_cut_once_and_thin_ones_along_three_axes_and_made_thick(tmp_path):
    write_scan(tmp_path / "thick", 0, lesions=the_same)
    thick = real_slices.read_scan(tmp_path / "thick")
    (slices,) = real_slices.scan_slices(thick)
    assert slices.images.shape[1:] == (*real_slices.CANVAS["head"], 3)
    assert 8 <= len(slices.images) <= 12
    assert not slices.sagittal.any()
    write_scan(tmp_path / "thin", 0, shape=THIN, lesions=the_same)
    thin = real_slices.read_scan(tmp_path / "thin")
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


def test_sources_scans_and_people_are_left_out(tmp_path):
    assert real_slices.leave_out("tabriz_1", ["tabriz"])
    assert not real_slices.leave_out("tabriz_1", ["tabriz_2", "ljubljana"])
    assert real_slices.leave_out("tabriz_107130", ["tabriz_112776"])  # one person
    write_scan(tmp_path / "elsewhere_1", 0, lesions=the_same)
    with pytest.raises(SystemExit, match="elsewhere_1 is of no source"):
        real_slices.labelled(tmp_path)


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
    slices = Slices(images, labels, ~known, known, np.full(6, "tabriz_1"))
    found = real_slices.painted(slices, Model())
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
    labels = real_slices.seen(excess)
    assert excess[labels].min() == pytest.approx(0.4 * 0.5, abs=0.02)
    assert not real_slices.seen(excess * 0.3).any()  # a spot that nobody sees


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
        loss = real_loss(sure(torch.full((1, 8, 8), found)), truth, unknown)
        assert loss.item() == pytest.approx(0, abs=1e-3)
    said = sure(torch.full((1, 8, 8), rim))
    assert real_loss(said, truth, known).item() > 10
    assert real_loss(said, torch.full_like(truth, RIM), known).item() < 1e-3
    assert real_loss(said, torch.full_like(truth, WMH), unknown).item() > 10
    assert real_loss(said, torch.full_like(truth, IGNORED), known).item() < 1e-3
    missed = sure(torch.full((1, 8, 8), wmh))
    assert real_loss(missed, truth, unknown).item() > 10


def test_a_sure_answer_that_is_right_costs_nothing():
    classes = torch.randint(
        0, len(CLASSES), (2, 16, 16), generator=torch.Generator().manual_seed(1)
    )
    assert base_losses.synthetic_loss(sure(classes), classes).item() < 1e-3
    assert base_losses.taught_loss(sure(classes), sure(classes).softmax(1)).item() < 1e-3
    assert base_losses.synthetic_loss(sure(classes.roll(3, 1)), classes).item() > 5


def test_teachers_are_heard_of_all_but_labelled_slices():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    batch = Batch(images, torch.zeros(2, 16, 16, dtype=torch.long), labels, torch.tensor([True]))
    teachers = [SpecialisedVGG(len(CLASSES), ((4, 4),)), SpecialisedVGG(6, ((4, 4),))]
    wanted = train_base.taught(teachers, batch)
    assert wanted.shape == (3, len(CLASSES), 16, 16)
    torch.testing.assert_close(wanted.sum(dim=1), torch.ones(3, 16, 16))
    parts = losses(torch.zeros(4, len(CLASSES), 16, 16), batch, wanted)
    assert set(parts) == {"synthetic", "real", "unlabelled"}
    assert set(losses(torch.zeros(3, len(CLASSES), 16, 16), batch, None)) == {"synthetic", "real"}


def test_reacquired_slices_stay_in_their_range_and_some_lose_their_t1():
    images = 100 * torch.ones(40, 3, 32, 32) - 127
    found = reacquired(images, torch.Generator().manual_seed(0)) + 127
    assert found.min() >= 0
    assert found.max() <= 255
    empty = (found[:, 2] == 0).all(dim=(1, 2)).float().mean()
    assert 0.15 < empty < 0.55
    assert (found[:, 1] > 0).all()


def test_people_of_a_source_are_drawn_alike():
    scans = np.repeat(["tabriz_107130", "tabriz_112776", "tabriz_1", "tabriz_2"], 3)
    labels = np.zeros((12, 4, 4), np.uint8)
    labels[:2, 0, :2] = WMH
    known = scans == "tabriz_2"
    slices = Slices(np.zeros((12, 4, 4, 3), np.uint8), labels, known, known, scans)
    groups = grouped(slices)
    assert set(groups) == {"tabriz", "tabriz with rims"}
    assert sorted(len(every) for every, _ in groups["tabriz"]) == [3, 6]
    assert sorted(len(shown) for _, shown in groups["tabriz"]) == [0, 2]


# Starts


def test_a_model_without_rims_gets_the_class_and_keeps_the_others():
    torch.manual_seed(0)
    old, new = SpecialisedVGG(6, vgg16(0.0625)), SpecialisedVGG(7, vgg16(0.0625))
    new.load_state_dict(train_base.with_rims(old.state_dict()))
    image = torch.randn(1, 3, 32, 32)
    before, after = old(image), new(image)
    torch.testing.assert_close(after[:, [0, 1, 2, 3, 4, 6]], before)
    assert train_base.with_rims(new.state_dict()).keys() == new.state_dict().keys()


def test_weights_in_8_bits_are_read(tmp_path):
    from safetensors.torch import save_file

    network = SpecialisedVGG(7, vgg16(0.0625))
    stored = {}
    for name, value in network.state_dict().items():
        scale = (value.abs().amax() / 127).clamp(min=1e-9)
        stored |= {name: (value / scale).round().to(torch.int8), f"{name}.scale": scale}
    save_file(stored, tmp_path / "weights.safetensors")
    classes, stages, weights = train_base.read_weights(str(tmp_path / "weights.safetensors"))
    assert (classes, stages) == (7, vgg16(0.0625))
    for name, value in network.state_dict().items():
        assert (weights[name] - value).abs().max() <= value.abs().max() / 200 + 1e-9


def test_models_are_averaged_and_what_each_has_seen_is_kept(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("a", "b")]
    for folder, scans in zip(folders, (["1", "2"], ["2", "3"]), strict=True):
        write_model(folder)
        card = load_card(folder)
        network = read_network(folder, card)
        with torch.no_grad():
            network.fusion.bias.fill_(float(scans[0]))
        training = {"steps": 5, "data": f"scans {scans}", "scans": scans, "left_out": ["x", *scans]}
        train_base.save_weights(folder, network.state_dict(), replace(card, training=training))
    monkeypatch.setattr("sys.argv", ["average.py", *map(str, folders), str(tmp_path / "mean")])
    average.main()
    card = load_card(tmp_path / "mean")
    assert read_network(tmp_path / "mean", card).fusion.bias.tolist() == [1.5] * len(CLASSES)
    assert card.training["scans"] == ["1", "2", "3"]
    assert card.training["left_out"] == ["2", "x"]
    assert card.training["data"].count("scans") == 2


# The training


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two heads, three labelled scans of two sources, an unlabelled pair, a model to start from."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "heads").mkdir()
    for number in (1, 4):  # the second is held out
        nifti.write(folder / "heads" / f"head{number:02d}.nii.gz", label_map())
    write_scan(folder / "real" / "tabriz_1", 0, lesions=the_same, lesions_pathological=right_half)
    write_scan(folder / "real" / "tabriz_2", 1, lesions_pathological=the_same)
    write_scan(folder / "real" / "ljubljana_1", 2, lesions=the_same)
    write_scan(folder / "pairs" / "patient01", 3)
    return folder


def write_model(folder):
    """A small model with rims, not trained."""
    stages = vgg16(0.0625)
    training = {"steps": 0, "data": "none", "scans": ["another"]}
    card = ModelCard("start", CLASSES, PREPARATION, stages, SIDE_MAPS, training)
    torch.manual_seed(0)
    train_base.save_weights(folder, SpecialisedVGG(len(CLASSES), stages).state_dict(), card)


def trained(monkeypatch, capsys, material, run, *options):
    command = [
        "train_base.py", material / "heads", run, "--width", 0.0625, "--batch", 6, "--kept", 2,
        "--fresh", 0.5, "--steps", 2, *options,
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", [str(word) for word in command])
    threads = torch.get_num_threads()
    try:
        train_base.main()
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out


def test_a_training_with_all_kinds_of_slices_resumes_bit_for_bit(
    material, tmp_path, monkeypatch, capsys
):
    start = tmp_path / "start"
    write_model(start)
    options = (
        "--real", material / "real", "--unlabelled", material / "pairs", "--leave", "ljubljana",
        "--start", start, "--teacher", start, "--painted", 0.5,
    )  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr("base_batches.DEFAULT", str(start))  # tells white matter, quickly
    printed = trained(monkeypatch, capsys, material, whole, *options)
    last = json.loads(printed.splitlines()[-2])
    assert last["step"] == 2
    assert {"synthetic", "real", "unlabelled"} <= last.keys()
    assert printed.endswith("2 of 2 steps\n")

    broken.mkdir()
    (broken / "real.npz").write_bytes((whole / "real.npz").read_bytes())
    with monkeypatch.context() as patched:  # the time is up after a step
        clock = chain([0.0] * 4, repeat(math.inf)).__next__
        patched.setattr(train_base, "time", SimpleNamespace(monotonic=clock))
        printed = trained(monkeypatch, capsys, material, broken, *options, "--minutes", 9)
        assert printed.endswith("1 of 2 steps\n")
    assert trained(monkeypatch, capsys, material, broken, *options).endswith("2 of 2 steps\n")
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, broken)]
    for kind in ("network", "average"):
        for name, value in states[0][kind].items():
            assert torch.equal(value, states[1][kind][name]), name
    cards = [load_card(run) for run in (whole, broken)]
    assert cards[0].weights_sha256 == cards[1].weights_sha256
    said = cards[0].training
    assert "2 labelled scans of tabriz (Mahdi-Bashiri" in said["data"]
    assert "ljubljana" not in said["data"]
    assert "1 unlabelled scans (Lesjak et al. 2017" in said["data"]
    assert said["left_out"] == ["ljubljana"]
    assert said["init"] == "start"
    assert len(said["scans"]) == 3 + 1  # one is of the model that it started from
    assert said["steps"] == 2
    assert said["slices"] == 12
    assert read_network(whole, cards[0])(torch.zeros(1, 3, 32, 32)).shape[1] == len(CLASSES)
    with pytest.raises(SystemExit, match="was begun with"):
        trained(monkeypatch, capsys, material, whole, *options, "--rate", 1)


def test_no_real_slices_are_drawn_without_real_scans():
    options = type("options", (), {"real": None, "painted": 0.25})
    real = Real(options, torch.device("cpu"))
    assert real.count("head", 6) == real.unlabelled_count("head", 6) == 0
    assert real.scans == real.seen == []
