"""Batch normalisation while a network is trained from nothing (Ioffe & Szegedy 2015).

Over all images of a step, whichever processes share them; folded into the convolutions at the end,
so that the model knows nothing of it.
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
    """That of maps (N, C, H, W), of all processes together."""

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
    """Each process has the sum, so each sends its gradient back to all."""

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
    """The sum over all processes of what each has."""
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total


def normalised(network: SpecialisedVGG) -> SpecialisedVGG:
    """The network with a normalisation in place of the bias of each convolution of its stages.

    The first layer, whose maps are normalised too, need not be small to bring grey values to one:
    an optimiser that moves all weights alike would overturn it in a few steps.
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
    """A copy without normalisation, which computes the same as the network does in use."""
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
