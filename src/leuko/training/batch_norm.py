"""Batch normalisation for training from random weights (Ioffe & Szegedy 2015).

The statistics are those of all images of a step, on all processes. After training, the
normalisation is folded into the convolutions: the saved model has no batch normalisation.
"""

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from leuko.model.network import GREY_SPREAD, SpecialisedVGG
from leuko.training import processes

MOMENTUM, EPSILON = 0.1, 1e-5


class BatchNorm(nn.Module):
    """Batch normalisation of feature maps (N, C, H, W), with statistics over all processes."""

    mean: Tensor
    variance: Tensor

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps))
        self.bias = nn.Parameter(torch.zeros(maps))
        self.register_buffer("mean", torch.zeros(maps))
        self.register_buffer("variance", torch.ones(maps))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and processes.count() > 1:
            return self._of_all(x)
        learnt = (self.mean, self.variance, self.weight, self.bias)
        return F.batch_norm(x, *learnt, self.training, MOMENTUM, EPSILON)

    def _of_all(self, x: Tensor) -> Tensor:
        values, count = x.float(), processes.count() * x.numel() // x.shape[1]
        own = torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
        mean, square = summed(own) / count
        variance = square - mean.square()
        with torch.no_grad():
            self.mean.lerp_(mean, MOMENTUM)
            self.variance.lerp_(variance * count / (count - 1), MOMENTUM)
        scale = self.weight * torch.rsqrt(variance + EPSILON)
        shift = self.bias - mean * scale
        normal: Tensor = values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        return normal.to(x.dtype)


class _Sum(torch.autograd.Function):
    """A sum over processes. The backward pass sums gradients, since every process uses the sum."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        return _summed(own)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(own: Tensor) -> Tensor:
    total = own.clone()
    distributed.all_reduce(total)
    return total


def summed(own: Tensor) -> Tensor:
    """The sum of `own` over all processes, differentiable with respect to every process's part."""
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total


def normalised(network: SpecialisedVGG) -> SpecialisedVGG:
    """The network, changed in place: each convolution of its stages gets batch normalisation and
    loses its bias.

    The weights of the first layer are multiplied by `GREY_SPREAD`. They need not scale grey values
    to 1, since the output is normalised; and AdamW takes steps of similar size for all weights,
    which would be too large for such small ones.
    """
    with torch.no_grad():
        network.first_convolution.weight *= GREY_SPREAD
    for number, stage in enumerate(network.stages):
        layers: list[nn.Module] = []
        for layer in stage.children():
            layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                layer.register_parameter("bias", None)
                layers.append(BatchNorm(layer.out_channels))
        network.stages[number] = nn.Sequential(*layers)
    return network


def folded(network: SpecialisedVGG) -> SpecialisedVGG:
    """A copy without batch normalisation; its output equals that of the network in evaluation."""
    plain = copy.deepcopy(network)
    for number, stage in enumerate(plain.stages):
        layers = list(stage.children())
        for layer, norm in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, BatchNorm):
                _fold(layer, norm)
        kept = (layer for layer in layers if not isinstance(layer, BatchNorm))
        plain.stages[number] = nn.Sequential(*kept)
    return plain


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: BatchNorm) -> None:
    scale = norm.weight * torch.rsqrt(norm.variance + EPSILON)
    convolution.weight *= scale.view(-1, 1, 1, 1)
    convolution.bias = nn.Parameter(norm.bias - norm.mean * scale)
