"""Integer weights that change a layer's sums least."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from leuko.model.network import SpecialisedVGG
from leuko.model.quantisation import compensated, rounded

NARROW = ((8, 8), (12,), (16, 16))


@pytest.fixture
def layer():
    """Weights (O, K), in units of their step, and inputs (K, ...) that go together as those of
    neighbouring pixels do."""
    draw = torch.Generator().manual_seed(0)
    weights = 20 * torch.randn(8, 300, generator=draw)
    inputs = torch.randn(300, 6, generator=draw) @ torch.randn(6, 5000, generator=draw)
    return weights, inputs + 0.1 * torch.randn(300, 5000, generator=draw)


def scales_of(network, largest):
    """Of each 3x3 convolution, so that its integers fit."""
    state = network.state_dict()
    names = [n.removesuffix(".weight") for n in state if n.endswith("weight") and "fusion" not in n]
    return {n: state[f"{n}.weight"].abs().amax(dim=(1, 2, 3)) / largest for n in names}


def off(weights, integers, inputs):
    """The mean squared error of the sums."""
    return ((weights - integers) @ inputs).pow(2).mean().item()


def test_inputs_on_their_own_take_the_nearest_integers(layer):
    weights, _ = layer
    found = compensated(weights, torch.eye(300), largest=1000)
    assert torch.equal(found, weights.round())


def test_sums_of_inputs_that_go_together_change_less(layer):
    weights, inputs = layer
    found = compensated(weights, inputs.cov(), largest=1000)
    assert torch.equal(found, found.round())
    assert off(weights, found, inputs) < 0.1 * off(weights, weights.round(), inputs)


def test_integers_have_a_largest(layer):
    weights, inputs = layer
    found = compensated(weights, inputs.cov(), largest=30)
    assert found.abs().max() == 30


def test_inputs_that_are_always_dark_do_no_harm(layer):
    weights, inputs = layer
    inputs[50:100] = 0
    found = compensated(weights, inputs.cov(), largest=1000)
    assert off(weights, found, inputs) < 0.1 * off(weights, weights.round(), inputs)
    assert torch.isfinite(compensated(weights, torch.zeros(300, 300), largest=1000)).all()


def test_a_network_in_few_bits_gives_nearly_the_same_maps():
    torch.manual_seed(0)
    network = SpecialisedVGG(2, NARROW).eval()
    images = F.interpolate(torch.randn(8, 3, 12, 8), size=(48, 32), mode="bilinear") * 40
    state = network.state_dict()
    scales = scales_of(network, largest=8)

    def with_weights(integers, biases):
        found = SpecialisedVGG(2, NARROW).eval()
        found.load_state_dict(state)
        parts = dict(found.named_parameters())
        with torch.no_grad():
            for name, scale in scales.items():
                parts[f"{name}.weight"].copy_(integers[name] * scale[:, None, None, None])
                parts[f"{name}.bias"].copy_(biases[name])
        return found

    together = list(rounded(network, images, scales, largest=8))
    assert sorted(name for name, *_ in together) == sorted(scales)
    ours = with_weights({n: i for n, i, _ in together}, {n: b for n, _, b in together})
    nearest = with_weights(
        {n: (state[f"{n}.weight"] / s[:, None, None, None]).round() for n, s in scales.items()},
        {n: state[f"{n}.bias"] for n in scales},
    )
    with torch.no_grad():
        expected, found, plain = (one(images) for one in (network, ours, nearest))
    assert (found - expected).pow(2).mean() < 0.3 * (plain - expected).pow(2).mean()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())


def test_the_same_scans_give_the_same_integers():
    torch.manual_seed(0)
    network, images = SpecialisedVGG(2, NARROW), torch.randn(4, 3, 32, 32) * 40
    scales = scales_of(network, largest=64)
    first, again = (
        [integers.numpy() for _, integers, _ in rounded(network, images, scales, largest=64)]
        for _ in range(2)
    )
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
