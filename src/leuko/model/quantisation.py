"""Rounds weights to integers so that layer outputs change least.

Rounding each weight to the nearest integer is not optimal: the inputs of a layer are correlated, so
rounding errors cancel or add up. Here weights are rounded in turn, and the remaining ones
compensate the error of each: optimal brain surgeon (Hassibi and Stork 1992), applied to rounding
by GPTQ (Frantar et al. 2022).
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from leuko.model.network import SpecialisedVGG

POSITIONS = 400  # random positions per slice from which the covariance of inputs is estimated
DAMPING = 0.01  # added to the variance of each input, as a fraction of their mean variance
BLOCK = 128  # inputs whose errors are propagated together, for speed


@torch.no_grad()
def rounded(
    network: SpecialisedVGG, images: Tensor, scales: Mapping[str, Tensor], *, largest: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields for each 3x3 convolution its name (`stages.0.0`, `sides.0`), its weights (O, I, 3, 3)
    as integers in [-largest, largest], and its bias (O,).

    A weight is its integer times the scale (O,) of its convolution. `images` (N, 3, H, W), centred,
    are like those that the network will see; each layer gets the outputs of the rounded layers.
    """
    state, draw = network.state_dict(), torch.Generator().manual_seed(0)

    def layer(name: str, maps: Tensor) -> tuple[Tensor, Tensor]:
        scale, inputs = scales[name][:, None], _inputs(maps, draw)
        weights, mean = state[f"{name}.weight"].flatten(1), inputs.mean(dim=1, keepdim=True)
        covariance = (inputs - mean).cov(correction=0)
        integers = compensated(weights / scale, covariance, largest)
        bias = state[f"{name}.bias"] + ((weights - integers * scale) @ mean)[:, 0]
        return integers.view_as(state[f"{name}.weight"]), bias

    below = images
    for level, stage in enumerate(network.stages):
        if level:
            below = F.max_pool2d(below, 2)
        for index in range(0, len(stage), 2):  # type: ignore[arg-type]
            name = f"stages.{level}.{index}"
            integers, bias = layer(name, below)
            yield name, integers, bias
            weights = integers * scales[name][:, None, None, None]
            below = torch.cat([F.conv2d(x[None], weights, bias, padding=1).relu() for x in below])
        name = f"sides.{level}"
        yield name, *layer(name, below)


def compensated(weights: Tensor, covariance: Tensor, largest: int) -> Tensor:
    """Integers (O, K), as float, for weights (O, K) of K inputs with `covariance` (K, K)."""
    left = weights.clone()
    count = left.shape[1]
    damping = DAMPING * covariance.diagonal().mean().clamp(min=1e-12)
    factor = torch.linalg.cholesky(covariance + damping * torch.eye(count))
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
    integers = torch.empty_like(left)
    for begin in range(0, count, BLOCK):
        end = min(begin + BLOCK, count)
        lost = torch.empty(len(left), end - begin)
        for k in range(begin, end):
            integers[:, k] = left[:, k].round().clamp(-largest, largest)
            lost[:, k - begin] = (left[:, k] - integers[:, k]) / inverse[k, k]
            left[:, k:end] -= lost[:, k - begin, None] * inverse[k, k:end]
        left[:, end:] -= lost @ inverse[begin:end, end:]
    return integers


def _inputs(maps: Tensor, draw: torch.Generator) -> Tensor:
    """Inputs (9 C, samples) of a 3x3 convolution of maps (N, C, H, W) at random positions."""
    columns = []
    for image in maps:
        seen = F.unfold(image[None], 3, padding=1)[0]
        columns.append(seen[:, torch.randperm(seen.shape[1], generator=draw)[:POSITIONS]])
    return torch.cat(columns, dim=1)
