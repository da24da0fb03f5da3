"""Made-up heads with known lesions, for tests and benchmarks: simple shapes, no anatomy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.volume import Array, Volume

#                     air  fat  skull  CSF  grey white lesion
FLAIR_GREY = np.array([2, 240, 15, 35, 190, 160, 270], dtype=float)
T1_GREY = np.array([3, 900, 40, 130, 330, 480, 350], dtype=float)
AIR, FAT, SKULL, CSF, GREY, WHITE, LESION = range(7)
# Finds lesions in made-up heads and has the classes of the bundled model; make_small_model.py.
SMALL_MODEL = Path(__file__).parent / "small_model"


@dataclass(frozen=True)
class Phantom:
    """FLAIR, T1, labels (1 = lesion) and tissues (AIR to LESION) of one made-up head, one grid."""

    flair: Volume
    t1: Volume
    labels: Volume
    tissue: Volume

    def write(self, folder: Path) -> None:
        """As a labelled subject: FLAIR.nii.gz, T1.nii.gz and wmh.nii.gz."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, volume in (("FLAIR", self.flair), ("T1", self.t1), ("wmh", self.labels)):
            nifti.write(folder / f"{name}.nii.gz", volume)


def make_phantom(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int] = (124, 152, 20),
    spacing_mm: tuple[float, float, float] = (1.3, 1.3, 6.0),
    lesions: int = 25,
) -> Phantom:
    """A random head: axes run R, A, S, and the centre of the grid is the world's origin."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = indices * spacing_mm + affine[:3, 3]  # (X, Y, Z, 3) in mm
    tissue = _tissue(points, spacing_mm, rng)
    tissue[_lesion_mask(points, tissue == WHITE, lesions, rng)] = LESION
    tilt = np.exp(0.1 * rng.normal(size=3) @ (points / 80).reshape(-1, 3).T).reshape(shape)
    scans = []
    for grey in (FLAIR_GREY, T1_GREY):
        contrast = grey[tissue] * rng.uniform(0.7, 1.4)
        blurred = scipy.ndimage.gaussian_filter(contrast, [0.7, 0.7, 0.2]) * tilt
        noise = rng.normal(scale=0.03 * grey[WHITE], size=(2, *shape))
        scans.append(np.hypot(blurred + noise[0], noise[1]).astype(np.int16))  # Rician
    return Phantom(
        Volume(scans[0], affine, name="FLAIR"),
        Volume(scans[1], affine, name="T1"),
        Volume((tissue == LESION).astype(np.uint8), affine, name="wmh"),
        Volume(tissue.astype(np.uint8), affine, name="tissue"),
    )


def label_map() -> Volume:
    """A ball of a head with FreeSurfer's numbers: scalp, bone, CSF, cortex, white, ventricles."""
    x, y, z = np.ogrid[-36:36, -36:36, -36:36]
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.zeros(radius.shape, np.int16)
    for limit, label in ((35, 507), (32, 515), (29, 24), (27, 3), (24, 2)):
        labels[radius < limit] = label
    labels[(radius < 24) & (x >= 0)] = 41
    labels[(radius < 27) & (radius >= 24) & (x >= 0)] = 42
    for side, label in ((-5, 4), (5, 43)):
        labels[((x - side) / 4) ** 2 + (y / 12) ** 2 + (z / 6) ** 2 < 1] = label
    labels[np.broadcast_to((np.abs(x) < 7) & (np.abs(y) < 7) & (z < -16), labels.shape)
           & (radius < 24)] = 16  # fmt: skip
    labels[22:24, 40:44, 34:38] = 25
    return Volume(labels, np.eye(4), name="ball")


def _tissue(points: Array, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> Array:
    def radius(centre_mm: tuple[float, ...], axes_mm: tuple[float, ...]) -> Array:
        return np.linalg.norm((points - np.array(centre_mm)) / axes_mm, axis=-1)  # type: ignore[no-any-return]

    def waves(width_mm: float) -> Array:
        noise = rng.normal(size=points.shape[:3])
        smooth = scipy.ndimage.gaussian_filter(noise, width_mm / np.array(spacing_mm))
        return smooth / smooth.std()  # type: ignore[no-any-return]

    size = rng.uniform(0.92, 1.05)
    head = radius((0, 0, 0), (76 * size, 94 * size, 66 * size))
    depth = head + 0.02 * waves(8)
    fold = np.abs(waves(5)) + 5 * np.maximum(0, 0.78 - depth)  # 0 at the bottom of a sulcus
    tissue = np.full(head.shape, AIR)
    tissue[head < 1] = FAT
    tissue[head < 0.95] = SKULL
    tissue[head < 0.90] = CSF
    tissue[depth < 0.88] = GREY
    tissue[(depth < 0.83) & (fold > 0.45)] = WHITE
    tissue[(depth < 0.88) & (fold < 0.12)] = CSF
    wide = rng.uniform(0.8, 1.5)
    for side in (-1, 1):
        tissue[radius((side * 27, 4, 0), (9, 16, 12)) < 1] = GREY
        tissue[radius((side * 11 * wide, -4, 3), (7 * wide, 34, 19)) < 1] = CSF
    return tissue


def _lesion_mask(points: Array, white: Array, lesions: int, rng: np.random.Generator) -> Array:
    """Ellipsoids of 2 to 8 mm radius, at random places in white matter."""
    mask = np.zeros(white.shape, dtype=bool)
    for centre in rng.permutation(points[white])[:lesions]:
        axes = rng.uniform(2, 8) * rng.uniform(0.7, 1.3, size=3)
        mask |= np.linalg.norm((points - centre) / axes, axis=-1) < 1
    return mask & white
