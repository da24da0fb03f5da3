"""Transfer learning: copies ImageNet weights of VGG-16 into the stages of the network.

torchvision publishes two kinds. IMAGENET1K_FEATURES, ported from Caffe, expects grey values
0..255 minus the mean of each colour; the paper subtracts 127. IMAGENET1K_V1 expects colours of
mean 0 and standard deviation 1; that scaling is folded into the first convolution.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor

from leuko.errors import LeukoError
from leuko.io.files import sha256
from leuko.model.network import VGG16, SpecialisedVGG

Kind = Literal["IMAGENET1K_FEATURES", "IMAGENET1K_V1"]
BASE_URL = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Published:
    """A published weight file; its name ends with the first 8 digits of its SHA-256."""

    file: str
    scaled_input: bool
    first_biases: tuple[float, ...] = ()  # of the first convolution; they identify the weights

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.file}"

    @property
    def sha256_prefix(self) -> str:
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]


PUBLISHED = {
    "IMAGENET1K_FEATURES": Published(
        "vgg16_features-amdegroot-88682ab5.pth",
        scaled_input=False,
        # From the Caffe model.
        first_biases=(0.7343, 0.0934, 0.0678, 0.8863, 0.2599, 0.6643, -0.0158, 0.3249),
    ),
    "IMAGENET1K_V1": Published(
        "vgg16-397923af.pth",
        scaled_input=True,
        first_biases=(0.4034, 0.3778, 0.4644, -0.3228, 0.3940, -0.3953, 0.3951, -0.5496),
    ),
}
DEFAULT: Kind = "IMAGENET1K_FEATURES"
SAME_BIAS = 0.005  # bfloat16 rounds biases of 0.5 to 1 by up to 0.002

# Mean and standard deviation of the colours in [0, 1] that IMAGENET1K_V1 was trained with
# (torchvision.models.VGG16_Weights).
V1_MEAN = (0.485, 0.456, 0.406)
V1_STD = (0.229, 0.224, 0.225)
# Plausible range of the root mean square output of a trained first layer, for scaled colours and
# for grey levels alike.
ANSWERS = (0.1, 1000.0)
GREY_PER_UNIT = 255 * 0.225  # grey levels per unit of a scaled colour, 57
# Correlation of neighbouring pixels, and of the colours of a pixel, typical of photographs.
SIDE_BY_SIDE, COLOURS_ALIKE = 0.95, 0.9


def transfer(
    model: SpecialisedVGG, source: str, *, kind: Kind | None = None, feature_scale: float = 1.0
) -> None:
    """Copy ImageNet weights into the stages of `model`, in place; other layers get small weights.

    `source` is a name in `PUBLISHED`, downloaded once into torch's cache, or the path of a file
    that torch or safetensors reads. Its 3x3 convolutions are taken in the order of the numbers in
    their names (`features.0.weight`, ...). The input that they expect is `kind`, or else inferred
    from the values (`inferred_kind`). `feature_scale` divides all feature maps of the stages.

    Raises LeukoError if the file is missing, damaged or of another architecture, if its values
    contradict `kind`, or if no `kind` is given and it cannot be inferred.
    """
    if source in PUBLISHED:
        path, published = _downloaded(source), PUBLISHED[source]
        if not sha256(path).startswith(published.sha256_prefix):
            raise LeukoError(
                f"{path} is not the file published at {published.url} (wrong SHA-256); delete it "
                "and run again"
            )
        state = _named(model, _read(path))
        _check(model, state, source)
    else:
        file = _read(Path(source))
        _require_vgg16(file, source)
        state = _named(model, file)
        _check(model, state, source)
        published = PUBLISHED[_agreed(source, given=kind, inferred=inferred_kind(file, state))]
    if published.scaled_input:
        state = fold_input_scaling(state)
    with torch.no_grad():
        for index, convolution in zip(_indices(model), model.convolutions, strict=True):
            convolution.weight.copy_(state[f"features.{index}.weight"])
            assert convolution.bias is not None  # every convolution of the stages has one
            convolution.bias.copy_(state[f"features.{index}.bias"])
    model.divide_maps(feature_scale)
    model.renew_specialised_layers()


def inferred_kind(file: dict[str, Tensor], state: dict[str, Tensor]) -> Kind | None:
    """The kind of a weight file, inferred from its values; None if they fit both or neither.

    The first biases identify the published weights, for any names and number type; torchvision's
    IMAGENET1K_FEATURES file has a classifier of nan. For other weights it is the kind whose first
    layer has an output in the plausible range (`ANSWERS`).
    """
    biases = state["features.0.bias"]
    for name, published in PUBLISHED.items():
        known = torch.tensor(published.first_biases)
        same_length = 0 < len(known) <= len(biases)
        if same_length and torch.allclose(biases[: len(known)], known, rtol=0, atol=SAME_BIAS):
            return cast("Kind", name)
    classifier = [value for name, value in file.items() if name.startswith("classifier.")]
    if classifier and all(bool(value.isnan().all()) for value in classifier):
        return "IMAGENET1K_FEATURES"
    answer = _answer(state["features.0.weight"])
    low, high = ANSWERS
    scaled, grey = (low <= size <= high for size in (answer, answer * GREY_PER_UNIT))
    if scaled == grey:
        return None
    return "IMAGENET1K_V1" if scaled else "IMAGENET1K_FEATURES"


def _answer(filters: Tensor) -> float:
    """Root mean square output of filters (M, 3, 3, 3) for an image with the correlations of a
    photograph and colours of standard deviation 1."""
    place = torch.arange(3.0)
    pixels = SIDE_BY_SIDE ** (place[:, None] - place).abs()
    colours = torch.full((3, 3), COLOURS_ALIKE).fill_diagonal_(1)
    power = torch.einsum("mcij,cd,ik,jl,mdkl->m", filters, colours, pixels, pixels, filters)
    return float(power.mean().sqrt())


def _agreed(source: str, *, given: Kind | None, inferred: Kind | None) -> Kind:
    """The kind of a file. Raises LeukoError if given and inferred differ or neither is known."""
    if given and inferred and given != inferred:
        raise LeukoError(
            f"{source} holds weights like {inferred}, not {given}; omit --imagenet-kind"
        )
    found = given or inferred
    if found is None:
        raise LeukoError(
            f"the values of {source} do not show whether it expects grey values from 0 to 255 "
            "minus their mean, or colours scaled to standard deviation 1; give --imagenet-kind "
            "IMAGENET1K_FEATURES for the first, IMAGENET1K_V1 for the second: the wrong one makes "
            "all maps 57 times too large or too small"
        )
    return found


def fold_input_scaling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for input (x / 255 - mean) / std converted to weights for x - 127, x in 0..255.

    Outputs are equal except at the slice's border, where zero padding stands for the colour mean in
    the former and for grey 127 in the latter.
    """
    weight = state["features.0.weight"]  # (64, 3, 3, 3)
    mean = torch.tensor(V1_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(V1_STD).view(1, 3, 1, 1)
    offset = (weight * (127 / 255 - mean) / std).sum(dim=(1, 2, 3))
    return state | {
        "features.0.weight": weight / (255 * std),
        "features.0.bias": state["features.0.bias"] + offset,
    }


def _indices(model: SpecialisedVGG) -> list[int]:
    """The indices of the convolutions in torchvision's list, which includes ReLU and pooling."""
    indices, index = [], 0
    for stage in model.stages:
        for _ in range(len(stage) // 2):  # type: ignore[arg-type]
            indices.append(index)
            index += 2
        index += 1
    return indices


def _downloaded(name: str) -> Path:
    url, folder = PUBLISHED[name].url, Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / PUBLISHED[name].file
    if not path.exists():
        try:
            torch.hub.load_state_dict_from_url(
                url, str(folder), check_hash=True, progress=True, weights_only=True
            )
        except (URLError, OSError, RuntimeError) as error:
            raise LeukoError(
                f"the ImageNet weights could not be downloaded from {url} ({error}); put that file "
                f"into {folder}, or give it with --imagenet-weights FILE, or train from scratch "
                "with --init none"
            ) from error
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LeukoError(f"{path} does not exist; give a VGG-16 weight file") from error
    except Exception as error:  # torch.load raises whatever a damaged or hostile file provokes
        raise LeukoError(
            f"{path} is not a plain file of weights that torch or safetensors can read; give "
            "weights of VGG-16"
        ) from error
    if not isinstance(state, dict):
        raise LeukoError(f"{path} holds no dictionary of weights; give torchvision's VGG-16")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _require_vgg16(file: dict[str, Tensor], source: str) -> None:
    """Raises LeukoError for normalisation layers, and for more convolutions than VGG-16 has."""
    for name, value in file.items():
        scales = value.ndim == 1 and name.endswith("weight")
        if scales or name.endswith(("running_mean", "running_var")):
            raise LeukoError(
                f"{source} has a normalisation layer ({name}), as torchvision's vgg16_bn does; "
                "give VGG-16 without normalisation"
            )
    found, expected = len(_kernels(file)), sum(map(len, VGG16))
    if found > expected:
        raise LeukoError(
            f"{source} holds {found} 3x3 convolutions; give weights of VGG-16, with {expected} at "
            "most"
        )


def _kernels(file: dict[str, Tensor]) -> list[str]:
    """Names of the 3x3 convolutions, sorted by the numbers in the names."""
    return sorted(
        (name for name, value in file.items() if value.ndim == 4 and value.shape[2:] == (3, 3)),
        key=lambda name: [int(number) for number in re.findall(r"\d+", name)],
    )


def _named(model: SpecialisedVGG, file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first 3x3 convolutions of a file, as many as the stages have, under torchvision's names
    and in float32."""
    return {
        f"features.{index}.{part}": file[name].float()
        for index, kernel in zip(_indices(model), _kernels(file), strict=False)
        for part in ("weight", "bias")
        if (name := kernel.removesuffix("weight") + part) in file
    }


def _check(model: SpecialisedVGG, state: dict[str, Tensor], source: str) -> None:
    for index, convolution in zip(_indices(model), model.convolutions, strict=True):
        for part, expected in convolution.named_parameters():
            value = state.get(f"features.{index}.{part}")
            found = "nothing" if value is None else tuple(value.shape)
            if value is None or found != tuple(expected.shape):
                raise LeukoError(
                    f"{source} has {found} at features.{index}.{part}; expected "
                    f"{tuple(expected.shape)}: ImageNet weights fit the full-width VGG-16 only"
                )
            if not value.isfinite().all():
                raise LeukoError(
                    f"{source} has nan or infinity at features.{index}.{part}; download it again"
                )
