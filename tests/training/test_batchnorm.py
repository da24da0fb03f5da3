"""Batch normalisation while a network is trained from nothing, and without it afterwards."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from conftest import small_settings
from leuko.errors import LeukoError
from leuko.model import runtime
from leuko.model.card import WEIGHTS_FILE
from leuko.model.network import SpecialisedVGG
from leuko.training import batch_norm, loop, plan, processes
from leuko.training.batch_norm import BatchNorm, folded, normalised

NARROW = ((4, 4), (8, 8))


def trained_for_a_while():
    torch.manual_seed(0)
    network = normalised(SpecialisedVGG(2, NARROW))
    for module in network.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(5):
        network(64 * torch.randn(3, 3, 32, 32) + 10)
    return network


def test_it_is_torchs():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm2d(5)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = 3 * torch.randn(4, 5, 8, 8) + 1
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.mean, theirs.running_mean)
    assert torch.equal(ours.variance, theirs.running_var)


def test_a_folded_network_computes_the_same():
    network = trained_for_a_while().eval()
    plain = folded(network)
    assert plain.state_dict().keys() == SpecialisedVGG(2, NARROW).state_dict().keys()
    x = 64 * torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, BatchNorm) for module in network.modules())


def test_a_plain_network_folds_to_itself():
    network = SpecialisedVGG(2, NARROW)
    for name, value in folded(network).state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_what_processes_share_is_what_one_has(monkeypatch):
    torch.manual_seed(0)
    x, alone, shared = 3 * torch.randn(4, 5, 8, 8) + 1, BatchNorm(5), BatchNorm(5)
    expected = alone(x)
    # The other process has the same images: sums are twice as large, as is their count.
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(batch_norm, "summed", lambda own: 2 * own)
    torch.testing.assert_close(shared(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.mean, alone.mean)
    torch.testing.assert_close(shared.variance, alone.variance, rtol=1e-2, atol=0)


def from_nothing(heads, steps):
    settings = small_settings(heads, steps=steps)
    return replace(settings, recipe=replace(settings.recipe, normalised=True))


def test_the_model_that_is_kept_has_no_normalisation(heads, tmp_path):
    plan.start(tmp_path / "run", from_nothing(heads, 200))
    measures = loop.fit(tmp_path / "run")
    state = load_file(tmp_path / "run" / WEIGHTS_FILE)
    plain = SpecialisedVGG(2, small_settings(heads, steps=1).stages)
    assert state.keys() == plain.state_dict().keys()
    assert runtime.load(tmp_path / "run").card.training["recipe"] == "modern"
    assert all(row["dsc"] > 0.5 for row in measures.values())


def test_a_start_from_another_model_has_none(heads, model, tmp_path):
    settings = replace(from_nothing(heads, 1), init=str(model))
    with pytest.raises(LeukoError, match="needs --init none"):
        plan.start(tmp_path / "run", settings)
