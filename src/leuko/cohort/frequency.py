"""How often WMH lie where: the mean of a cohort's masks in MNI152 space, as image and picture."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.ndimage

from leuko.io import nifti
from leuko.io.files import write_json
from leuko.io.tissue import Tissue
from leuko.lesions import mni
from leuko.report.pictures import as_jpeg, heat_map
from leuko.volume import Array, require_same_grid

IMAGE, ABOUT, PICTURE = "wmh_frequency.nii.gz", "wmh_frequency.json", "wmh_frequency.jpg"
FILES = (IMAGE, ABOUT, PICTURE)
# Grey values of the tissues behind the map, as on a T1.
GREYS = np.zeros(len(Tissue), dtype=np.float32)
GREYS[[Tissue.CSF, Tissue.VENTRICLE, Tissue.GREY, Tissue.WHITE]] = 40, 40, 100, 150
LEVELS_MM = range(-40, 72, 8)  # of the slices, z in MNI152 space

log = logging.getLogger(__name__)


def write(folder: Path, masks: Sequence[Path], *, scans: int) -> bytes:
    """Write the share of masks (N) that mark each voxel, 0 to 1, and its picture; returns that as
    JPEG. `scans` is the number of usable results; a warning tells if some have no mask.

    Without masks nothing is written. Raises LeukoError for masks on different grids.
    """
    if not masks:
        return b""
    if len(masks) < scans:
        log.warning(
            "the frequency map shows %d of %d scans: the others were segmented without --save-mni",
            len(masks),
            scans,
        )
    first = nifti.read_mask(masks[0])
    counts = first.data.astype(np.uint32)
    for path in masks[1:]:
        mask = nifti.read_mask(path)
        require_same_grid(mask, first)
        counts += mask.data
    shares = (counts / len(masks)).astype(np.float32)
    nifti.write(folder / IMAGE, nifti.in_mni(first.with_data(shares)))
    about = {
        "Description": "Share of the scans that have WMH in a voxel, 0 to 1",
        "Space": mni.SPACE,
        "NumberOfScans": len(masks),
    }
    write_json(folder / ABOUT, about)
    jpeg = as_jpeg(
        heat_map(
            _slices(_behind(shares.shape)),
            _slices(shares),
            title=f"Scans: {len(masks)}. Share with WMH, in {mni.SPACE}",
            marks=[f"z = {mm}" for mm in LEVELS_MM],
        )
    )
    (folder / PICTURE).write_bytes(jpeg)
    return jpeg


def _behind(shape: tuple[int, ...]) -> Array:
    """The template as a grey image on its own grid of 1 mm."""
    greys = GREYS[mni.read("tissue").data]
    zoomed = scipy.ndimage.zoom(greys, 2, order=1)
    fitted: Array = np.zeros(shape, np.float32)
    part = tuple(slice(min(a, b)) for a, b in zip(zoomed.shape, shape, strict=True))
    fitted[part] = zoomed[part]
    return fitted


def _slices(image: Array) -> list[Array]:
    low_mm = mni.ORIGIN_MM[2]
    return [image[:, :, mm - low_mm] for mm in LEVELS_MM]
