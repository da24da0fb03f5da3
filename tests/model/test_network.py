import pytest
import torch
import torch.nn.functional as F

from leuko.model.network import VGG16, SpecialisedVGG

NARROW = ((4, 4), (6, 6), (8, 8, 8), (8, 8, 8), (8, 8, 8))


def test_the_full_network_has_the_parameters_of_the_paper():
    # VGG-16: a 3x3 conv from a to b maps has 9ab weights and b biases.
    vgg = 0
    for maps_in, maps_out in [
        (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
        (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
    ]:  # fmt: skip
        vgg += 9 * maps_in * maps_out + maps_out
    assert vgg == 14_714_688  # the number published for VGG-16 without its head
    sides = 9 * 16 * (64 + 128 + 256 + 512 + 512) + 5 * 16
    fusion = 5 * 16 * 2 + 2
    network = SpecialisedVGG(classes=2)
    assert sum(p.numel() for p in network.parameters()) == vgg + sides + fusion


@pytest.mark.parametrize("stages", [NARROW, NARROW[:4], NARROW[:1]])
@pytest.mark.parametrize("size", [(16, 16), (48, 32), (176, 208)])
def test_every_pixel_gets_a_score_for_every_class(stages, size):
    logits = SpecialisedVGG(3, stages)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)


def test_the_shared_fusion_equals_the_figure_of_the_paper():
    torch.manual_seed(0)
    network = SpecialisedVGG(2, NARROW)
    for parameter in network.parameters():  # biases too, which start at 0
        torch.nn.init.normal_(parameter, std=0.3)
    x = slices = torch.randn(2, 3, 32, 48)
    maps = []
    for level, (stage, side) in enumerate(zip(network.stages, network.sides, strict=True)):
        x = stage(F.max_pool2d(x, 2) if level else x)
        maps.append(F.interpolate(side(x), (32, 48), mode="bilinear", align_corners=False))
    literal = network.fusion(torch.cat(maps, dim=1))
    torch.testing.assert_close(network(slices), literal, rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_all_layers():
    torch.manual_seed(0)
    network = SpecialisedVGG(2, NARROW)
    network(64 * torch.randn(2, 3, 32, 32)).logsumexp(dim=1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_features_start_at_the_scale_of_one():
    torch.manual_seed(0)
    x = 64 * torch.randn(1, 3, 64, 64)
    for stage in SpecialisedVGG(2).stages:
        x = stage(x)
        assert 0.2 < x.std() < 5


def test_specialised_maps_and_scores_start_at_the_scale_of_one_or_small():
    torch.manual_seed(0)
    network = SpecialisedVGG(2)
    side, fusion = network.sides[0], network.fusion
    assert side(torch.randn(1, 64, 64, 64)).std().item() == pytest.approx(1, rel=0.2)
    assert fusion(torch.randn(1, 80, 64, 64)).std().item() == pytest.approx(1, rel=0.3)
    network.renew_specialised_layers()
    assert side.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_filters_are_blind_to_brightness_at_the_start():
    network = SpecialisedVGG(2)
    for convolution in network.convolutions:
        mean = convolution.weight.mean(dim=(1, 2, 3))
        assert mean.abs().max() < 1e-6


def test_memory_layout_does_not_change_the_answer():
    torch.manual_seed(0)
    network, x = SpecialisedVGG(2, NARROW), torch.randn(1, 3, 32, 32)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    found = network(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_vgg16_has_thirteen_convolutions_in_five_stages():
    assert [len(stage) for stage in VGG16] == [2, 2, 3, 3, 3]
    assert len(SpecialisedVGG(2, NARROW).convolutions) == 13
