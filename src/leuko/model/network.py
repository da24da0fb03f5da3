"""The network of Xu et al. 2017: VGG-16 stages, a specialised layer on each, and their fusion."""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stages = tuple[tuple[int, ...], ...]

# The maps after each 3x3 convolution of VGG-16, stage by stage (Simonyan & Zisserman 2014).
VGG16: Stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Maps of each specialised layer, K in the paper.
SIDE_MAPS = 16
GREY_SPREAD = 64  # standard deviation of centred grey values, about
# Root mean square of a Gaussian after ReLU, divided by its standard deviation after ReLU.
SPREAD_ALONE = math.sqrt(math.pi / (math.pi - 1))


def vgg16(width: float) -> Stages:
    """VGG-16 with a fraction `width` of its maps in every stage; 0.5 is a quarter of the work."""
    return tuple(tuple(int(width * maps) for maps in stage) for stage in VGG16)


class SpecialisedVGG(nn.Module):
    """Fully convolutional VGG-16 with specialised layers, for slices of any H, W multiple of 16.

    Figure 1 of the paper, with K = 16 maps a stage and C classes:

        slice (N, 3, H, W)
          |
        stage 1: 2 x conv 64  -> (N,  64, H,    W)    -> conv 3x3, K --------------+
          | max pool 2x2                                                           |
        stage 2: 2 x conv 128 -> (N, 128, H/2,  W/2)  -> conv 3x3, K -> resize x2 -+
          | max pool                                                               |  concatenate
        stage 3: 3 x conv 256 -> (N, 256, H/4,  W/4)  -> conv 3x3, K -> resize x4 -+  (N, 5K, H, W)
          | max pool                                                               |  conv 1x1, C
        stage 4: 3 x conv 512 -> (N, 512, H/8,  W/8)  -> conv 3x3, K -> resize x8 -+
          | max pool                                                               |
        stage 5: 3 x conv 512 -> (N, 512, H/16, W/16) -> conv 3x3, K -> resize x16 +-> (N, C, H, W)

    Every conv of a stage is 3x3, keeps H and W, and is followed by ReLU; the specialised layers
    and the fusion have none. `stages` is the architecture: `VGG16[:4]` drops the coarsest stage,
    as the ICIP 2017 paper does; `vgg16(0.5)` has half as many maps.
    """

    def __init__(self, classes: int, stages: Stages = VGG16, side_maps: int = SIDE_MAPS) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.sides = nn.ModuleList()
        maps = 3
        for widths in stages:
            self.stages.append(nn.Sequential(*_convolutions(maps, widths)))
            self.sides.append(nn.Conv2d(widths[-1], side_maps, 3, padding=1))
            maps = widths[-1]
        self.fusion = nn.Conv2d(side_maps * len(stages), classes, 1)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C, H, W) of centred slices (N, 3, H, W), float.

        Fusion and resizing are both linear and act on different axes, so each stage's share of
        the 1x1 conv is taken before its maps are resized: the same sum, with C maps to resize
        instead of K.
        """
        size = x.shape[-2:]
        shares = self.fusion.weight.chunk(len(self.stages), dim=1)  # each (C, K, 1, 1)
        logits = cast("Tensor", self.fusion.bias).view(1, -1, 1, 1)
        for level, (stage, side, share) in enumerate(
            zip(self.stages, self.sides, shares, strict=True)
        ):
            if level:
                x = F.max_pool2d(x, 2)
            x = stage(x)  # (N, widths[-1], H / 2^level, W / 2^level)
            scores = F.conv2d(side(x), share)  # (N, C, H / 2^level, W / 2^level)
            if level:
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
            logits = logits + scores
        return logits

    def _initialise(self) -> None:
        """Random weights for training from scratch, with all maps at unit scale.

        He et al. 2015 for the stages, each filter minus its mean, so that image brightness does not
        dominate image content; `SPREAD_ALONE` corrects for the mean after ReLU (Brock et al.
        2021). The first layer divides by `GREY_SPREAD`, the scale of centred grey values.
        """
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", convolution.bias))
            with torch.no_grad():
                convolution.weight -= convolution.weight.mean(dim=(1, 2, 3), keepdim=True)
                convolution.weight *= SPREAD_ALONE
        with torch.no_grad():
            self.first_convolution.weight /= GREY_SPREAD * SPREAD_ALONE
        for module in (*self.sides, self.fusion):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)

    def renew_specialised_layers(self) -> None:
        """Draw small Gaussian weights, as is usual for layers added to a trained network."""
        for module in (*self.sides, self.fusion):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def divide_maps(self, by: float) -> None:
        """Divide all feature maps of the stages: with ReLU it is enough to divide the weights of
        the first convolution and all biases."""
        self.first_convolution.weight.div_(by)
        for convolution in self.convolutions:
            cast("Tensor", convolution.bias).div_(by)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions of the stages, in order: 13 for VGG-16."""
        return [m for m in self.stages.modules() if isinstance(m, nn.Conv2d)]

    @property
    def first_convolution(self) -> nn.Conv2d:
        return self.convolutions[0]


def _convolutions(maps: int, widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(maps, width, 3, padding=1), nn.ReLU(inplace=True)]
        maps = width
    return layers
