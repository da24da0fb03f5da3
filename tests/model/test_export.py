"""A model in 8-bit ONNX computes what the network does, and can become the network again."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from conftest import segmented, small_settings
from leuko.errors import LeukoError
from leuko.evaluation.evaluate import compare, evaluate
from leuko.evaluation.labels import LABEL_VALUES
from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.model import runtime
from leuko.model.card import CARD_FILE, ONNX_FILE, load_card, save_card
from leuko.model.network import SpecialisedVGG
from leuko.model.onnx_export import export, read_network, to_onnx
from leuko.preprocessing.slices import centred
from leuko.training import cross_validation, holdout, loop, plan
from leuko.training.dataset import find_subjects
from leuko.training.loop import training_slices


@pytest.fixture(scope="module")
def slices(model):
    return training_slices(model)


@pytest.fixture(scope="module")
def exported(model, slices, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "model"
    export(model, out, slices)
    return out


def test_the_graph_computes_what_the_network_does():
    torch.manual_seed(0)
    network = SpecialisedVGG(4, ((8, 8), (12,), (16, 16)), side_maps=5)
    for module in (*network.sides, network.fusion):
        torch.nn.init.normal_(module.weight, std=0.3)
    slices = np.random.default_rng(0).integers(0, 256, (3, 48, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(to_onnx(network).SerializeToString())
    (found,) = session.run(None, {"slices": slices})
    images = torch.from_numpy(slices).permute(0, 3, 1, 2).float() - 127
    expected = network(images).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.2


def test_eight_bits_find_the_same_lesions(model, exported, slices):
    floats, integers = (runtime.load(folder).predict(slices)[:, -1] for folder in (model, exported))
    assert dice(prediction=integers >= 0.5, reference=floats >= 0.5) > 0.98
    assert np.abs(floats - integers).max() > 0


def test_an_exported_model_is_small_and_says_what_it_is(model, exported):
    before, card = load_card(model), load_card(exported)
    assert card == replace(before, weights=ONNX_FILE, weights_sha256=card.weights_sha256)
    network = SpecialisedVGG(2, card.stages, card.side_maps)
    parameters = sum(p.numel() for p in network.parameters())
    assert (exported / ONNX_FILE).stat().st_size < 2 * parameters + 60_000


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_batch_and_threads_do_not_change_a_mask(exported, slices, batch, threads):
    expected = runtime.load(exported).predict(slices)
    found = runtime.load(exported, threads=threads).predict(slices, batch=batch)
    np.testing.assert_array_equal(found[:, -1] >= 0.5, expected[:, -1] >= 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_slices_without_head_are_background(exported, slices):
    model = runtime.load(exported)
    dark = np.zeros((2, *slices.shape[1:]), np.uint8)
    dark[1, ::7] = 20  # noise
    alone = model.predict(dark)
    assert (alone[:, 0] == 1).all()
    assert not alone[:, 1:].any()
    mixed = model.predict(np.concatenate([dark[:1], slices[20:21], dark[1:], slices[21:22]]))
    np.testing.assert_allclose(mixed[[1, 3]], model.predict(slices[20:22]), atol=1e-6)


def test_an_exported_model_segments_without_torch(exported, heads, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from leuko.cli import main\n"
        f"head = {str(heads / 'head0')!r}\n"
        "main(['segment', '--flair', f'{head}/FLAIR.nii.gz', '--t1', f'{head}/T1.nii.gz',"
        f" '--model', {str(exported)!r}, '-o', {str(tmp_path / 'out')!r}])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    row = evaluate(heads / "head0" / "wmh.nii.gz", tmp_path / "out" / "wmh.nii.gz")
    assert row["dsc"] > 0.75


def test_the_network_comes_back(model, exported, slices):
    card = load_card(exported)
    original, found = read_network(model, load_card(model)), read_network(exported, card)
    for name, value in found.state_dict().items():
        if name.startswith("fusion"):
            assert torch.equal(value, original.state_dict()[name]), name
    images = torch.from_numpy(centred(slices[::10])).permute(0, 3, 1, 2)
    with torch.no_grad():
        scores, expected = (network(images) for network in (found, original))
    off = (scores - expected).pow(2).mean() / (expected - expected.mean()).pow(2).mean()
    assert off < 1e-4, off


def test_torch_computes_an_exported_model_where_onnxruntime_cannot(exported, slices):
    card = load_card(exported)
    found = runtime.load(exported, by_torch=True).predict(slices[20:24])[:, -1]
    expected = runtime.load(exported).predict(slices[20:24])[:, -1]
    network = read_network(exported, card).eval()
    images = torch.from_numpy(centred(slices[20:24])).permute(0, 3, 1, 2)
    with torch.no_grad():
        exact = network(images).softmax(dim=1)[:, -1]
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert dice(prediction=found >= 0.5, reference=expected >= 0.5) > 0.97


def test_an_exported_model_starts_a_training(exported, heads, tmp_path):
    run = tmp_path / "run"
    plan.start(run, small_settings(heads, steps=1, init=str(exported), held_out=0.0))
    started = torch.load(run / loop.CHECKPOINT_FILE, weights_only=True)["model"]
    expected = read_network(exported, load_card(exported)).state_dict()
    assert all(torch.equal(started[name], expected[name]) for name in expected)


def test_a_cross_validation_measures_an_exported_start_as_the_network_that_it_is(
    exported, heads, tmp_path
):
    start = tmp_path / "start"
    shutil.copytree(exported, start)
    card = load_card(start)
    save_card(start, replace(card, training={**card.training, "scans": []}))
    settings = small_settings(heads, steps=1, init=str(start), held_out=0.0, folds=2)
    plan.start(tmp_path / "run", settings)
    validation = cross_validation.fit(tmp_path / "run")
    network = runtime.load(exported, by_torch=True)
    for subject in find_subjects(heads):
        truth = nifti.read_labels(subject.labels, values=LABEL_VALUES)
        assert validation.before[subject.name] == compare(
            truth, holdout.segment(subject, network)[0]
        )


def test_what_8_bits_change_is_measured(model, exported, slices):
    count, dice, change = loop.rounding(model, exported, slices)
    assert count == min(loop.COMPARED_SLICES, len(slices))
    assert 0.9 < dice < 1
    assert abs(change) < 10
    assert loop.rounding(model, model, slices[:5]) == (5, 1, 0)
    count, dice, change = loop.rounding(model, exported, np.zeros_like(slices[:5]))
    assert math.isnan(dice)
    assert math.isnan(change)


def test_a_model_is_exported_once_and_not_over_another(model, exported, slices, tmp_path):
    with pytest.raises(LeukoError, match="is exported already"):
        export(exported, tmp_path / "out", slices)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(LeukoError, match="is not empty"):
        export(model, tmp_path / "full", slices)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]


def test_a_tampered_model_is_refused(exported, heads, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (CARD_FILE, ONNX_FILE):
        (copy / name).write_bytes((exported / name).read_bytes())
    weights = bytearray((copy / ONNX_FILE).read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / ONNX_FILE).write_bytes(weights)
    with pytest.raises(LeukoError, match="its card expects"):
        segmented(heads / "head0" / "FLAIR.nii.gz", None, tmp_path / "out", model=copy)


def test_a_file_that_is_no_network_is_refused(exported, tmp_path):
    card = load_card(exported)
    (tmp_path / ONNX_FILE).write_bytes(b"no network")
    save_card(tmp_path, card)
    with pytest.raises(LeukoError, match="cannot be loaded by onnxruntime"):
        runtime.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ("background", "csf", "wmh")},
        {"stages": ((4, 4), (4, 4))},
    ],
)
def test_a_card_of_another_network_is_refused(exported, tmp_path, change):
    (tmp_path / ONNX_FILE).write_bytes((exported / ONNX_FILE).read_bytes())
    card = save_card(tmp_path, replace(load_card(exported), **change))
    with pytest.raises(LeukoError, match="do not fit its card"):
        read_network(tmp_path, card)
    if "classes" in change:
        with pytest.raises(LeukoError, match="do not fit its card"):
            runtime.load(tmp_path)


def test_a_model_that_does_not_know_its_scans_needs_some(exported):
    with pytest.raises(LeukoError, match="give labelled scans with --data"):
        training_slices(exported)


def test_other_scans_can_calibrate(model, heads):
    assert training_slices(model, heads).shape[-1] == 3


def test_the_card_is_json(exported):
    assert json.loads((exported / CARD_FILE).read_text())["weights"] == ONNX_FILE
