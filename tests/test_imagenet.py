import pickle
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F

from leuko import imagenet
from leuko.errors import LeukoError
from leuko.files import sha256
from leuko.network import SpecialisedVGG

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
