"""Make the model of seven classes in `small_model/`: `python tests/make_small_model.py`.

It knows all classes of the bundled model and finds the lesions of made-up heads, with a thousandth
of the work. Where a test needs a model, and not the bundled one, this is the one to take.
"""

import numpy as np
import onnx
import scipy.ndimage
import torch
import torch.nn.functional as F

from leuko.io.tissue import CLASSES
from leuko.model.calibration import Calibration
from leuko.model.card import ONNX_FILE, ModelCard, save_card
from leuko.model.network import SpecialisedVGG
from leuko.model.onnx_export import quantised
from leuko.preprocessing.slices import Pair, Preparation, centred
from phantoms import CSF, FLAIR_GREY, GREY, LESION, SMALL_MODEL, WHITE, make_phantom

PREPARATION = Preparation(pixel_mm=2.0, t1_optional=True)
STAGES = ((6, 6), (8, 8), (8, 8), (8, 8))
SIDE_MAPS = 6
HEADS, STEPS, BATCH = 16, 500, 8
LESIONS = 60  # in a head: many, so that few steps teach them
WEIGHTS = torch.tensor([1.0, 1, 1, 1, 1, 3, 6])  # of the classes: rims and lesions are rare
SIZES = (((90, 110, 18), (1.9, 1.9, 7.0)), ((124, 152, 20), (1.3, 1.3, 6.0)))


def labelled(seed):
    """Slices (N, H, W, 3) and classes (N, H, W) of a made-up head; every second has bright rims."""
    rng = np.random.default_rng(seed)
    shape, spacing = SIZES[seed % 2]
    head = make_phantom(rng, shape=shape, spacing_mm=spacing, lesions=LESIONS)
    tissue = head.tissue.data
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * spacing
    points = points - (np.array(shape) - 1) / 2 * spacing
    ventricle = (tissue == CSF) & (np.linalg.norm(points / (76, 94, 66), axis=-1) < 0.7)
    rim = scipy.ndimage.binary_dilation(ventricle, np.ones((3, 3, 1))) & (tissue == WHITE)
    classes = np.zeros(shape, np.uint8)
    for kind, name in ((CSF, "csf"), (GREY, "grey"), (WHITE, "white"), (LESION, "wmh")):
        classes[tissue == kind] = CLASSES.index(name)
    classes[ventricle] = CLASSES.index("ventricle")
    flair = head.flair
    if seed % 4 < 2:
        classes[rim] = CLASSES.index("rim")
        ratio = np.where(rim, FLAIR_GREY[LESION] / FLAIR_GREY[WHITE], 1)
        flair = flair.with_data((flair.data * ratio).astype(np.int16))
    images, placement = Pair.of(flair, head.t1, PREPARATION).slices()
    shares = [placement.slices((classes == k).astype(np.float32)) for k in range(len(CLASSES))]
    return images, np.argmax(shares, axis=0)


def trained(images, classes):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = SpecialisedVGG(len(CLASSES), STAGES, SIDE_MAPS)
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = rng.choice(len(images), BATCH, replace=False)
        x = torch.from_numpy(centred(images[chosen])).permute(0, 3, 1, 2).contiguous()
        x[rng.random(BATCH) < 0.35, 2] = -127  # without T1
        loss = F.cross_entropy(network(x), torch.from_numpy(classes[chosen]), WEIGHTS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def on_canvas(array, size):
    """The middle of slices (N, H, W, ...) on a canvas of `size` (height, width), beyond them 0."""
    canvas = np.zeros((len(array), *size, *array.shape[3:]), array.dtype)
    height, width = (min(a, b) for a, b in zip(array.shape[1:3], size, strict=True))
    (top, left), (t, u) = (
        ((h - height) // 2, (w - width) // 2) for h, w in (size, array.shape[1:3])
    )
    canvas[:, top : top + height, left : left + width] = array[:, t : t + height, u : u + width]
    return canvas


def main():
    heads = [labelled(seed) for seed in range(HEADS)]
    images, classes = (
        np.concatenate([on_canvas(part, (96, 112)) for part in parts])
        for parts in zip(*heads, strict=True)
    )
    network = trained(images, classes)
    SMALL_MODEL.mkdir(exist_ok=True)
    onnx.save(quantised(network, images[::7]), str(SMALL_MODEL / ONNX_FILE))
    card = ModelCard(
        name="small",
        classes=CLASSES,
        preparation=PREPARATION,
        stages=STAGES,
        side_maps=SIDE_MAPS,
        training={"script": "tests/make_small_model.py", "steps": STEPS, "data": "made-up heads"},
        weights=ONNX_FILE,
        three_planes=True,
        edges=True,
        licence="Apache-2.0",
        calibration=Calibration(1.5, 0.1, None, "nothing"),
    )
    save_card(SMALL_MODEL, card)


if __name__ == "__main__":
    main()
