"""The transfer: VGG-16 weights learnt on ImageNet become the network's stages.

torchvision publishes two sets. IMAGENET1K_FEATURES are the original ones, which expect grey values
0..255 minus about 127, just what the paper feeds them. IMAGENET1K_V1 expect each colour scaled to
zero mean and unit spread; that scaling is folded into the first convolution.
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from leuko.errors import LeukoError
from leuko.files import sha256
from leuko.network import SpecialisedVGG

BASE_URL = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Published:
    """A published weight file; its name ends with the first 8 digits of its SHA-256."""

    file: str
    scaled_input: bool

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.file}"

    @property
    def sha256_prefix(self) -> str:
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]


PUBLISHED = {
    "IMAGENET1K_FEATURES": Published("vgg16_features-amdegroot-88682ab5.pth", scaled_input=False),
    "IMAGENET1K_V1": Published("vgg16-397923af.pth", scaled_input=True),
}
DEFAULT = "IMAGENET1K_FEATURES"

# Mean and standard deviation of the colours in [0, 1] that IMAGENET1K_V1 was trained with
# (torchvision.models.VGG16_Weights).
V1_MEAN = (0.485, 0.456, 0.406)
V1_STD = (0.229, 0.224, 0.225)


def transfer(model: SpecialisedVGG, source: str, *, feature_scale: float = 1.0) -> None:
    """Copy ImageNet weights into the stages of `model`, in place; its other layers start small.

    `source` is a name in `PUBLISHED`, downloaded once into torch's cache, or the path of a file
    with torchvision's key names (`features.0.weight`, ...). A file is taken for IMAGENET1K_V1 if
    it is that very file, and for weights that expect 0..255 minus 127 otherwise.

    `feature_scale` divides every map that the stages give.

    Raises LeukoError when the file is missing, damaged or of another architecture.
    """
    if source in PUBLISHED:
        path, published = _downloaded(source), PUBLISHED[source]
        if not sha256(path).startswith(published.sha256_prefix):
            raise LeukoError(
                f"{path} is not the file published at {published.url} (wrong SHA-256); delete it "
                "and run again"
            )
        state, scaled_input = _read(path), published.scaled_input
    else:
        path = Path(source)
        state = _read(path)
        scaled_input = sha256(path).startswith(PUBLISHED["IMAGENET1K_V1"].sha256_prefix)
    _check(model, state, source)
    if scaled_input:
        state = fold_input_scaling(state)
    with torch.no_grad():
        for index, convolution in zip(_indices(model), model.convolutions, strict=True):
            convolution.weight.copy_(state[f"features.{index}.weight"])
            assert convolution.bias is not None  # every convolution of the stages has one
            convolution.bias.copy_(state[f"features.{index}.bias"])
    model.divide_maps(feature_scale)
    model.renew_specialised_layers()


def fold_input_scaling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for (x / 255 - mean) / std turned into weights for x - 127, x in 0..255.

    Equal away from the slice's border, where padding means the colour mean for the one and
    grey 127 for the other.
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
    """The numbers of VGG-16's convolutions in torchvision's list, which counts ReLU and pooling."""
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
                f"the ImageNet weights could not be fetched from {url} ({error}); put that file "
                f"into {folder}, or name it with --imagenet-weights FILE, or start from scratch "
                "with --init none"
            ) from error
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise LeukoError(f"{path} does not exist; give a VGG-16 weight file") from error
    except Exception as error:  # torch.load raises whatever a damaged or hostile file provokes
        raise LeukoError(
            f"{path} is not a plain file of weights that torch can read; expected VGG-16's"
        ) from error
    if not isinstance(state, dict):
        raise LeukoError(f"{path} holds no dictionary of weights; expected torchvision's VGG-16")
    return state


def _check(model: SpecialisedVGG, state: dict[str, Tensor], source: str) -> None:
    for index, convolution in zip(_indices(model), model.convolutions, strict=True):
        for part, expected in convolution.named_parameters():
            value = state.get(f"features.{index}.{part}")
            found = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
            if found != tuple(expected.shape):
                raise LeukoError(
                    f"{source} has {found} at features.{index}.{part}; expected "
                    f"{tuple(expected.shape)}: ImageNet weights fit the full-width VGG-16 only"
                )
