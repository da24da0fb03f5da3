import pickle
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from leuko.errors import LeukoError
from leuko.io.files import sha256
from leuko.model import imagenet
from leuko.model.network import SpecialisedVGG

STAGES = ((4, 4), (6, 6), (8, 8, 8))
# Where torchvision's list of layers has its convolutions: ReLU and pooling count too.
INDICES = (0, 2, 5, 7, 10, 12, 14)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights with torchvision's key names, of a narrow VGG."""
    generator = torch.Generator().manual_seed(0)
    weights, maps = {}, 3
    for index, width in zip(INDICES, [w for stage in STAGES for w in stage], strict=True):
        shape = (width, maps, 3, 3)
        weights[f"features.{index}.weight"] = torch.randn(shape, generator=generator)
        weights[f"features.{index}.bias"] = torch.randn(width, generator=generator)
        maps = width
    return weights | {"classifier.0.weight": torch.full((4, 4), torch.nan)}


@pytest.fixture
def weight_file(state, tmp_path):
    path = tmp_path / "my-vgg.pth"
    torch.save(state, path)
    return path


def stage_maps(network, x):
    maps = []
    for level, stage in enumerate(network.stages):
        x = stage(F.max_pool2d(x, 2) if level else x)
        maps.append(x)
    return maps


def test_a_file_with_torchvisions_names_fills_the_stages(state, weight_file):
    network = SpecialisedVGG(2, STAGES)
    imagenet.transfer(network, str(weight_file))
    for index, convolution in zip(INDICES, network.convolutions, strict=True):
        assert torch.equal(convolution.weight, state[f"features.{index}.weight"])
        assert torch.equal(convolution.bias, state[f"features.{index}.bias"])


def test_a_network_without_the_coarsest_stage_takes_what_it_has(state, weight_file):
    network = SpecialisedVGG(2, STAGES[:2])
    imagenet.transfer(network, str(weight_file))
    assert torch.equal(network.convolutions[-1].weight, state["features.7.weight"])


def test_other_layers_start_small_beside_imagenets(weight_file):
    network = SpecialisedVGG(2, STAGES)
    imagenet.transfer(network, str(weight_file))
    assert network.fusion.weight.abs().max() < 0.06


def test_the_feature_scale_divides_every_map(weight_file):
    plain, scaled = SpecialisedVGG(2, STAGES), SpecialisedVGG(2, STAGES)
    imagenet.transfer(plain, str(weight_file))
    imagenet.transfer(scaled, str(weight_file), feature_scale=64)
    x = 100 * torch.randn(1, 3, 16, 16)
    for expected, found in zip(stage_maps(plain, x), stage_maps(scaled, x), strict=True):
        torch.testing.assert_close(found * 64, expected, rtol=1e-4, atol=1e-2)


def test_folding_the_input_scaling_keeps_the_first_layer(state):
    grey = 255 * torch.rand(1, 3, 8, 8)
    mean = torch.tensor(imagenet.V1_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(imagenet.V1_STD).view(1, 3, 1, 1)
    folded = imagenet.fold_input_scaling(state)
    expected = F.conv2d(
        (grey / 255 - mean) / std, state["features.0.weight"], state["features.0.bias"]
    )
    found = F.conv2d(grey - 127, folded["features.0.weight"], folded["features.0.bias"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def published(monkeypatch, tmp_path, state):
    """A published file of ours, served from a folder, in place of torchvision's."""
    served = tmp_path / "served"
    served.mkdir()
    torch.save(state, served / "vgg16.pth")
    name = f"vgg16-{sha256(served / 'vgg16.pth')[:8]}.pth"
    (served / "vgg16.pth").rename(served / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(imagenet, "BASE_URL", served.as_uri())
    for key, scaled in (("IMAGENET1K_FEATURES", False), ("IMAGENET1K_V1", True)):
        monkeypatch.setitem(imagenet.PUBLISHED, key, imagenet.Published(name, scaled_input=scaled))
    return served / name


def test_published_weights_are_fetched_once_and_checked(published, state, tmp_path):
    network = SpecialisedVGG(2, STAGES)
    imagenet.transfer(network, "IMAGENET1K_FEATURES")
    published.unlink()  # from now on only the cache has them
    imagenet.transfer(network, "IMAGENET1K_FEATURES")
    assert torch.equal(network.first_convolution.weight, state["features.0.weight"])
    assert (tmp_path / "cache/hub/checkpoints" / published.name).is_file()


@pytest.mark.usefixtures("published")
def test_published_weights_for_scaled_colours_are_folded(state):
    network = SpecialisedVGG(2, STAGES)
    imagenet.transfer(network, "IMAGENET1K_V1")
    folded = imagenet.fold_input_scaling(state)
    assert torch.equal(network.first_convolution.weight, folded["features.0.weight"])
    assert torch.equal(network.first_convolution.bias, folded["features.0.bias"])


def test_a_download_with_the_wrong_hash_is_refused(published, state):
    torch.save(state | {"features.0.bias": torch.zeros(4)}, published)
    with pytest.raises(LeukoError, match="hash"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), "IMAGENET1K_FEATURES")


def test_a_damaged_cache_is_refused(published, state, tmp_path):
    cached = tmp_path / "cache/hub/checkpoints" / published.name
    cached.parent.mkdir(parents=True)
    torch.save(state | {"features.0.bias": torch.zeros(4)}, cached)
    with pytest.raises(LeukoError, match=r"wrong SHA-256\); delete it"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), "IMAGENET1K_FEATURES")


def test_without_network_the_error_names_url_cache_and_option(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(LeukoError) as error:
        imagenet.transfer(SpecialisedVGG(2), "IMAGENET1K_FEATURES")
    assert "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth" in str(
        error.value
    )
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)
    assert "--imagenet-weights FILE" in str(error.value)


class Malice:
    """Unpickled, it would stop the test run."""

    def __reduce__(self):
        return (pytest.exit, ("code was run",))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"features.0.weight": Malice()}, path)
    with pytest.raises(LeukoError, match="not a plain file of weights"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), str(path))
    path.write_bytes(pickle.dumps(Malice()))
    with pytest.raises(LeukoError, match="not a plain file of weights"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), str(path))


@pytest.mark.parametrize("content", [b"", b"not a weight file"])
def test_a_file_that_is_no_weight_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(LeukoError, match=r"weights\.pth is not a plain file of weights"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), str(path))


def test_a_missing_file_and_another_architecture_are_refused(weight_file, tmp_path):
    with pytest.raises(LeukoError, match="does not exist"):
        imagenet.transfer(SpecialisedVGG(2, STAGES), str(tmp_path / "nowhere.pth"))
    with pytest.raises(LeukoError, match=r"\(4, 3, 3, 3\) at features.0.weight"):
        imagenet.transfer(SpecialisedVGG(2), str(weight_file))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    "parts",
    [
        ("weight", "bias", "running_mean", "running_var"),
        ("weight", "bias"),
        ("running_mean", "running_var"),
    ],
)
def test_vgg_with_batch_normalisation_is_refused_by_name(state, tmp_path, parts, prefix):
    normalised = state | {f"features.1.{part}": torch.ones(4) for part in parts}
    path = tmp_path / "vgg16_bn.pth"
    torch.save({prefix + name: value for name, value in normalised.items()}, path)
    reason = rf"has a normalisation layer \({prefix}features\.1\.{parts[0]}\), as .* vgg16_bn"
    with pytest.raises(LeukoError, match=reason):
        imagenet.transfer(SpecialisedVGG(2, STAGES), str(path), kind="IMAGENET1K_V1")


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_file_of_more_convolutions_than_vgg16_has_is_refused(state, tmp_path, stages):
    more = {f"features.{20 + 2 * k}.weight": torch.ones(8, 8, 3, 3) for k in range(9)}
    torch.save(state | more, tmp_path / "vgg19.pth")
    network = SpecialisedVGG(2, STAGES[:stages])
    with pytest.raises(LeukoError, match=r"16 3x3 convolutions; give weights of VGG-16, with 13"):
        imagenet.transfer(network, str(tmp_path / "vgg19.pth"))


# What a file is for, told by its values


PUBLISHED_KINDS = ("IMAGENET1K_FEATURES", "IMAGENET1K_V1")
FULL = ((64,), (6, 6))  # the published first layer has 64 biases
FULL_INDICES = (0, 3, 5)


def full_state(scale, biases=()):
    """Weights without a classifier; the first layer's of the given size and first biases."""
    generator = torch.Generator().manual_seed(3)
    state, maps = {}, 3
    for index, width in zip(FULL_INDICES, (64, 6, 6), strict=True):
        spread = scale * (2 / 27) ** 0.5 if index == 0 else (2 / (9 * maps)) ** 0.5
        shape = (width, maps, 3, 3)
        state[f"features.{index}.weight"] = spread * torch.randn(shape, generator=generator)
        state[f"features.{index}.bias"] = 0.3 * torch.randn(width, generator=generator)
        maps = width
    state["features.0.bias"][: len(biases)] = torch.tensor(biases)
    return state


def first_answers(network):
    """The root mean square of the first layer's answers to grey values of a photograph's spread."""
    torch.manual_seed(4)
    coarse = F.interpolate(torch.randn(1, 1, 12, 12), (96, 96), mode="bicubic")
    grey = (127 + 60 * (coarse + 0.3 * torch.randn(1, 3, 96, 96))).clamp(0, 255)
    with torch.no_grad():
        return network.convolutions[0](grey - 127)[..., 1:-1, 1:-1].square().mean().sqrt().item()


def saved_as(form, state, folder):
    if form == "pth":
        torch.save(state, folder / "weights.pth")
        return folder / "weights.pth"
    if form == "float16":
        return saved_as("pth", {name: value.half() for name, value in state.items()}, folder)
    if form == "bfloat16":
        return saved_as("pth", {name: v.bfloat16() for name, v in state.items()}, folder)
    if form == "renamed":
        names = ("conv1_1", "conv2_1", "conv2_2")
        for index, name in zip(FULL_INDICES, names, strict=True):
            for part in ("weight", "bias"):
                state[f"{name}.{part}"] = state.pop(f"features.{index}.{part}")
        return saved_as("pth", dict(reversed(state.items())), folder)
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("form", ["pth", "float16", "bfloat16", "renamed", "safetensors"])
@pytest.mark.parametrize("kind", PUBLISHED_KINDS)
def test_published_weights_saved_again_are_known(tmp_path, kind, form):
    state = full_state(1, imagenet.PUBLISHED[kind].first_biases)
    expected = imagenet.fold_input_scaling(state) if kind == "IMAGENET1K_V1" else dict(state)
    network = SpecialisedVGG(2, FULL)
    imagenet.transfer(network, str(saved_as(form, dict(state), tmp_path)))
    for index, convolution in zip(FULL_INDICES, network.convolutions, strict=True):
        weight = expected[f"features.{index}.weight"]
        torch.testing.assert_close(convolution.weight.data, weight, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("scale", "kind"), [(1 / 57, "IMAGENET1K_FEATURES"), (57, "IMAGENET1K_V1")]
)
def test_the_only_input_with_sensible_answers_is_taken(tmp_path, scale, kind):
    path = str(saved_as("pth", full_state(scale), tmp_path))
    network = SpecialisedVGG(2, FULL)
    imagenet.transfer(network, path)
    assert 0.1 < first_answers(network) < 1000
    other = next(name for name in PUBLISHED_KINDS if name != kind)
    with pytest.raises(LeukoError, match=f"weights like {kind}, not {other}"):
        imagenet.transfer(SpecialisedVGG(2, FULL), path, kind=other)


def test_a_file_that_does_not_tell_its_input_is_refused_until_it_is_said(tmp_path):
    path = str(saved_as("pth", full_state(1), tmp_path))
    with pytest.raises(LeukoError, match=r"do not show whether .* give --imagenet-kind"):
        imagenet.transfer(SpecialisedVGG(2, FULL), path)
    answers = []
    for kind in PUBLISHED_KINDS:
        network = SpecialisedVGG(2, FULL)
        imagenet.transfer(network, path, kind=kind)
        answers.append(first_answers(network))
    assert answers[0] / answers[1] == pytest.approx(57, rel=0.1)


def test_weights_of_nan_are_refused(tmp_path):
    state = full_state(1 / 57)
    state["features.3.bias"][0] = torch.nan
    with pytest.raises(LeukoError, match=r"nan or infinity at features\.3\.bias"):
        imagenet.transfer(SpecialisedVGG(2, FULL), str(saved_as("pth", state, tmp_path)))
