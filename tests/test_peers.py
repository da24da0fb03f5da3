"""The peers that Leuko is measured beside are what their papers say."""

import numpy as np
import peer_data
import peer_methods
import peer_tables
import peer_training
import peer_unet
import pytest
import torch

from leuko.evaluation.metrics import dice
from leuko.lesions.components import find_lesions
from leuko.preprocessing.slices import tissue_level
from leuko.volume import Volume
from phantoms import make_phantom


@pytest.fixture(scope="module")
def head():
    return make_phantom(np.random.default_rng(0), lesions=12)


@pytest.fixture(scope="module")
def dynunet():
    pytest.importorskip("monai", reason="the 3-D peer needs MONAI: pip install leuko[peers]")
    import peer_dynunet

    return peer_dynunet


@pytest.fixture
def small(dynunet, monkeypatch):
    """A narrow 3-D network with a small window."""
    monkeypatch.setattr(dynunet, "PATCH", (8, 64, 64))
    widths = (4, 4, 4, 4, 4, 4)
    torch.manual_seed(0)
    return lambda *, supervised: dynunet.Network(widths, supervised=supervised)


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_u_net_gives_a_logit_a_pixel_whatever_the_size():
    network = peer_unet.UNet((4, 4, 4, 4, 4))
    for size in ((200, 200), (48, 56), (50, 70)):
        assert network(torch.zeros(2, 2, *size)).shape == (2, *size)


def test_the_u_net_has_the_parameters_of_its_layers():
    # Figure 2 of the paper: widths 64 to 512, two convolutions a level, skips concatenated.
    levels = [(2, 64, 25), (64, 96, 9), (96, 128, 9), (128, 256, 9), (256, 512, 9)]
    levels += [(768, 256, 9), (384, 128, 9), (224, 96, 9), (160, 64, 9)]
    expected = sum(k * (a * b + b * b) + 2 * b for a, b, k in levels) + 65
    assert count(peer_unet.UNet()) == expected == 8_283_457


@pytest.mark.parametrize("size", [(240, 240), (181, 217), (132, 256), (200, 200), (201, 199)])
def test_what_the_window_cuts_it_puts_back_where_it_was(size):
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(3, *size))
    window = peer_unet.Window(row=(size[0] - 200) // 2, column=(size[1] - 200) // 2 + 3)
    square = window.cut(slices, fill=-7)
    back = window.undo(square, size)
    assert square.shape == (3, 200, 200)
    assert np.array_equal(back[back != 0], slices[back != 0])
    assert (back != 0).sum() == (square != -7).sum() == 3 * kept(size[0], 0) * kept(size[1], 3)


def kept(pixels, shift):
    """How many of an axis a window of 200 shows that is shifted from the middle."""
    first = (pixels - 200) // 2 + shift
    return min(first + 200, pixels) - max(first, 0)


def test_of_an_odd_number_of_rows_the_last_is_cropped():
    maps = torch.arange(25.0).expand(1, 1, 25, 25)
    assert peer_unet.centred(maps, (25, 24))[0, 0, 0].tolist() == list(range(24))
    assert peer_unet.centred(maps, (25, 22))[0, 0, 0].tolist() == list(range(1, 23))
    assert peer_unet.centred(maps, (25, 27))[0, 0, 0].tolist() == [0, *range(25), 0]


def test_the_first_and_last_slices_hold_nothing(head):
    found = peer_unet.probability(head.flair, head.t1, [lambda images: images[:, 0]])
    slices = head.flair.data.shape[2]
    ends = round(slices / 8)
    assert ends > 0
    assert found.any(axis=(0, 1)).tolist() == [
        ends <= number < slices - ends for number in range(slices)
    ]


def test_the_u_net_trains_on_slices_that_were_moved_in_full_precision():
    images, labels = torch.rand(20, 2, 200, 200), torch.zeros(20, 200, 200)
    labels[7, 100, 100] = 1
    seen = []

    def network(batch):
        seen.append(batch)
        return batch[:, 0]

    peer_unet.step_of(network, images, labels)(0.0, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    drawn = rng.integers(20, size=peer_unet.IMAGES_PER_STEP)
    chosen = rng.random(peer_unet.IMAGES_PER_STEP) < 0.5
    drawn[chosen] = rng.choice([7], size=chosen.sum())
    assert torch.equal(seen[0], peer_unet.augmented(images[drawn], labels[drawn], rng)[0])
    assert seen[0].dtype == torch.float32


def test_each_channel_is_normal_within_the_head(head):
    squares, window = peer_unet.prepared(head.flair, head.t1)
    assert squares.shape == (head.flair.data.shape[2], 2, 200, 200)
    for channel, scan in enumerate((head.flair, head.t1)):
        inside = peer_unet.head_of(np.moveaxis(scan.data, 2, 0), tissue_level(scan))
        values = squares[:, channel][window.cut(inside)]
        assert values.mean() == pytest.approx(0, abs=1e-3)
        assert values.std() == pytest.approx(1, abs=1e-3)


def test_the_ensemble_is_the_mean_of_its_networks(head):
    torch.manual_seed(0)
    networks = [peer_unet.UNet((4, 4, 4, 4, 4)) for _ in range(2)]
    both = peer_unet.probability(head.flair, head.t1, networks)
    each = [peer_unet.probability(head.flair, head.t1, [network]) for network in networks]
    assert both.shape == head.flair.data.shape
    assert both.min() >= 0
    assert both.max() <= 1
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-6)


def test_augmenting_keeps_an_image_and_its_labels_together():
    labels = torch.zeros(16, 200, 200)
    labels[:, 60:90, 120:150] = 1
    images = labels[:, None].expand(-1, 2, -1, -1)
    moved, truth = peer_unet.augmented(images, labels, np.random.default_rng(0))
    assert (moved[:, 0].round() == truth).float().mean() > 0.999
    assert len({tuple(t.sum(dim=0).tolist()) for t in truth}) > 4  # about half are moved


def test_the_u_nets_loss_is_1_minus_dice_and_the_cross_entropy():
    truth = torch.zeros(2, 40, 40)
    truth[0, :20] = 1
    sure = 20 * (2 * truth - 1)
    assert peer_unet.loss_of(sure, truth).item() == pytest.approx(0, abs=1e-6)
    assert peer_unet.loss_of(-sure, truth).item() == pytest.approx(21, rel=1e-3)


def test_a_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """The first run is stopped by a step that fails, after a checkpoint; the second ends it."""
    monkeypatch.setattr(peer_training, "CHECKPOINT_SECONDS", 0.0)
    path, drawn = tmp_path / "network.pt", []

    def take(*, failing_at):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)

        def step(_, rng):
            if len(drawn) == failing_at:
                raise KeyboardInterrupt
            drawn.append(rng.random())
            return network(torch.full((64, 3), drawn[-1])).square().mean()

        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        peer_training.train(
            path,
            network,
            optimizer,
            step,
            seconds=0.2,
            seed=5,
            images_per_step=64,
            largest_gradient=1.0,
        )

    with pytest.raises(KeyboardInterrupt):
        take(failing_at=3)
    take(failing_at=-1)
    state, steps = peer_training.load(path), len(drawn)
    assert state["finished"]
    assert state["steps"] == steps > 3
    assert drawn == [np.random.default_rng([5, k]).random() for k in range(steps)]
    take(failing_at=steps)  # a finished one takes no step


def test_thresholding_finds_a_planted_lesion(head):
    truth = head.labels.data == 1
    chosen = peer_methods.choose_threshold([(head.flair, truth)])
    found = peer_methods.brighter(head.flair, chosen["level"], chosen["smallest_mm3"])
    assert dice(prediction=found, reference=truth) == pytest.approx(chosen["dice"])
    assert chosen["dice"] > 0.5
    assert find_lesions(found & truth)[1] >= 6


def test_test_subjects_are_of_heads_that_no_training_subject_is_of(tmp_path, monkeypatch):
    used = []
    empty = Volume(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4))

    def made(head, group, *_):
        used.append((head, group.name))
        return {"wmh": empty}

    monkeypatch.setattr(peer_data, "load_head", lambda path: path.name.removesuffix(".nii.gz"))
    monkeypatch.setattr(peer_data, "scan", made)
    heads = tmp_path / "heads"
    heads.mkdir()
    for name in ("head01", "head04", "head05", "head12"):
        (heads / f"{name}.nii.gz").touch()
    homes = list(peer_data.make_subjects(tmp_path / "data", heads, None))
    assert len(homes) == peer_data.TRAINING.number + peer_data.TEST.number
    assert {head for head, group in used if group == "train"} == {"head01", "head05"}
    assert {head for head, group in used if group == "test"} == {"head04", "head12"}
    assert list(peer_data.make_subjects(tmp_path / "data", heads, None)) == []


def test_tables_say_where_a_measure_is_undefined():
    rows = {"a": {"dsc": 0.5, "lesion_f1": 0.5, "h95_mm": None}}
    rows["b"] = {"dsc": 0.7, "lesion_f1": 0.5, "h95_mm": 3.0}
    text = peer_tables.as_text({"accuracy-test": {"leuko": rows, "threshold": rows}})
    assert "| test, 2 subjects | DSC |" in text
    assert "0.600 (0.500 to 0.700)" in text
    assert "of 1 |" in text


def test_the_3_d_network_has_the_parameters_that_nnu_net_plans(dynunet):
    # nnU-Net's own network of this plan has 30,703,786 with biases, MONAI's has none inside.
    assert count(dynunet.Network(supervised=False)) == pytest.approx(30.7e6, rel=0.01)


def test_the_3_d_network_gives_logits_of_every_supervised_level(dynunet, small):
    x = torch.zeros(1, 2, 8, 64, 64)
    outputs = small(supervised=True).train()(x)
    sizes = [tuple(out.shape) for out in outputs]
    assert sizes == [(1, 2, 8, 64, 64), (1, 2, 8, 32, 32), (1, 2, 4, 16, 16), (1, 2, 2, 8, 8)]
    assert small(supervised=False).eval()(x).shape == (1, 2, 8, 64, 64)
    labels = torch.zeros(1, 1, 8, 64, 64)
    assert torch.isfinite(dynunet.supervised_loss(outputs, labels))


def test_the_3_d_network_uses_flat_kernels_on_both_sides_of_the_full_resolution(dynunet):
    last = dynunet.Network(supervised=False).upsamples[-1].conv_block
    kernels = {tuple(m.kernel_size) for m in last.modules() if isinstance(m, torch.nn.Conv3d)}
    assert kernels == {(1, 3, 3)}


@pytest.mark.parametrize("how", [{}, {"mirrored": True}, {"one_pass": True}])
def test_the_3_d_peer_answers_on_the_grid_of_the_flair(small, dynunet, how):
    phantom = make_phantom(
        np.random.default_rng(0), shape=(26, 30, 6), spacing_mm=(3.0, 3.0, 8.0), lesions=2
    )
    found = dynunet.probability(
        phantom.flair,
        phantom.t1,
        small(supervised=False).eval(),
        **{"mirrored": False, "one_pass": False} | how,
    )
    assert found.shape == phantom.flair.data.shape
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.usefixtures("small")
def test_a_patch_shows_the_lesion_that_it_was_drawn_for(dynunet):
    wmh = torch.zeros(12, 70, 40, dtype=torch.uint8)
    wmh[11, 69, 0] = 1
    scan = wmh[None].expand(2, -1, -1, -1).half()
    for seed in range(5):
        images, labels = dynunet.batch([(scan, wmh)], np.random.default_rng(seed))
        assert labels[-1].sum() == 1
        assert torch.equal(images[:, :1], labels)


def test_a_crop_is_undone_exactly(dynunet):
    whole = np.zeros((5, 9, 7))
    whole[1:4, 2:8, 0:6] = np.random.default_rng(0).normal(size=(3, 6, 6))
    crop = dynunet.Crop.of(whole != 0)
    assert np.array_equal(crop.undo(crop.cut(whole)), whole)
