"""SimpleITK: conversion of images and bias correction. See `registration`."""

from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813, the name in its own documentation

from leuko.volume import Volume

N4_SHRINK_MM = 4.0  # spacing of the grid on which the smooth bias field is estimated
HEAD = 0.25  # lower limit of the head, as a fraction of the mean of positive voxels


def as_image(scan: Volume) -> Any:
    """The volume as a SimpleITK image, with axes made perpendicular.

    World coordinates stay RAS, not ITK's LPS: use such images only with each other.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.data.transpose(2, 1, 0)))
    left, _, right = np.linalg.svd(scan.affine[:3, :3] / scan.spacing_mm)
    image.SetDirection((left @ right).ravel().tolist())
    image.SetSpacing(scan.spacing_mm)
    image.SetOrigin(scan.affine[:3, 3].tolist())
    return image


def without_bias(scan: Volume, *, threads: int) -> Volume:
    """The scan divided by its bias field, float32. N4, Tustison et al. 2010."""
    image = as_image(scan.with_data(np.clip(scan.data, 0, None).astype(np.float32)))
    positive = scan.data[scan.data > 0]
    head = as_image(scan.with_data((scan.data > HEAD * positive.mean()).astype(np.uint8)))
    shrink = [max(1, round(N4_SHRINK_MM / mm)) for mm in scan.spacing_mm]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50, 50, 50])
    n4.SetNumberOfThreads(threads)
    n4.Execute(sitk.Shrink(image, shrink), sitk.Shrink(head, shrink))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    return scan.with_data((scan.data / np.exp(field)).astype(np.float32))
