"""Reads image files and writes NIfTI without changing the grid; the only module with nibabel."""

import logging
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from leuko.errors import LeukoError, in_one_line
from leuko.io import masks
from leuko.io.files import other_half, unpacked
from leuko.volume import Array, Volume, as_type, require_head_size

log = logging.getLogger(__name__)

InMemory = nib.spatialimages.SpatialImage

UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI's codes: unknown, m, mm, micron
MGH = bytes((0, 0, 0, 1))  # version number at the start of every FreeSurfer file

# Limits of a singular affine: length of an axis, and determinant of the axis directions.
TINY_MM, FLAT = 1e-9, 1e-6

# Direction cosines stored as float32 or as quaternions are off by up to 1e-6; an error between
# these two limits is rounding in a converter, a larger one is a shear.
ROUNDING = 1e-5
NOT_A_SHEAR = 1e-3

# Labels stored as integers with a scale are off by up to half a step: 1.004 for 1 in 8 bit. With
# larger steps labels cannot be told apart.
COARSEST_STEP = 0.1


def read(path: Path) -> Volume:
    """A 3-D image (NIfTI in one file or two, or .mgz) with its scaling applied and affine in mm.

    Values have the file's data type if it has no scaling (an integer file gives an integer array)
    and are floating point otherwise. Trailing axes of length 1 are dropped.

    Raises LeukoError if the file is missing or damaged, or the image is not 3-D, is all zeros, has
    NaN or infinite voxels, a singular affine, voxel sizes that are not positive, or a size that
    does not fit a head.
    """
    return _scan(_load(path), path)


def from_image(image: InMemory) -> Volume:
    """A 3-D nibabel image in memory, checked and scaled as by `read`; raises the same errors."""
    path = Path(image.get_filename() or "image in memory")
    if isinstance(image, nib.MGHImage):
        return _scan(_as_nifti(image, path), path)
    if not isinstance(image, nib.Nifti1Pair):
        raise LeukoError(f"{path} is a {type(image).__name__}; expected a NIfTI or MGH image")
    return _scan(image, path)


def mask_from_image(image: InMemory, *, labels: Collection[int] | None = None) -> Volume:
    """The mask in a nibabel image in memory, read as by `read_mask`."""
    path = Path(image.get_filename() or "mask in memory")
    volume = _as_labels(image, path)
    return volume.with_data(masks.as_mask(volume.data, path, labels=labels))


def read_labels(path: Path, *, values: Collection[int]) -> Volume:
    """A label image as uint8, by `masks.as_labels`; NaN becomes 0. All zeros is valid."""
    volume = _labelled(path)
    return volume.with_data(masks.as_labels(volume.data, path, values=values))


def read_map(path: Path) -> Volume:
    """An image that may be all zeros, such as a mask or numbered lesions; NaN becomes 0."""
    return _labelled(path)


def read_numbers(path: Path) -> Volume:
    """A label image with any labels, as uint16, by `masks.as_numbers`; NaN becomes 0."""
    volume = _labelled(path)
    return volume.with_data(masks.as_numbers(volume.data, path))


def read_probability(path: Path) -> Volume:
    """A probability map, by `masks.as_probability`; NaN becomes 0. All zeros is valid."""
    volume = _labelled(path)
    return volume.with_data(masks.as_probability(volume.data, path))


def read_mask(path: Path, *, labels: Collection[int] | None = None) -> Volume:
    """A mask as bool, by `masks.as_mask`; NaN becomes 0. All zeros is valid."""
    volume = _labelled(path)
    return volume.with_data(masks.as_mask(volume.data, path, labels=labels))


def read_prediction(path: Path) -> Volume:
    """A predicted mask as bool, by the challenge's rule (`masks.as_prediction`); NaN becomes 0."""
    volume = _labelled(path)
    return volume.with_data(masks.as_prediction(volume.data, path))


def write(path: Path, volume: Volume) -> None:
    """Write the volume in its own data type, without scaling, on its own grid.

    sform, qform, their codes, pixdim and units are those of the file the grid was read from; a
    volume made in memory gets both forms with code 1 (scanner coordinates).
    """
    nib.save(as_image(volume), path)


def in_mni(volume: Volume) -> Volume:
    """The volume with a header whose form code says that its world is MNI152 space."""
    image = nib.Nifti1Image(volume.data, volume.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code="mni")
    image.set_qform(volume.affine, code="mni")
    return replace(volume, header=image.header)


def to_bytes(volume: Volume) -> bytes:
    """The content of the volume's file, not compressed."""
    content: bytes = as_image(volume).to_bytes()  # type: ignore[attr-defined]
    return content


def stored(scan: Path | InMemory | Volume) -> bytes:
    """A scan as the content of a NIfTI file, not compressed.

    Header, data type, scaling and voxels of a NIfTI scan are those that are stored; other scans
    are written as by `write`. Raises LeukoError as `read` does.
    """
    if isinstance(scan, Volume):
        return to_bytes(scan)
    if isinstance(scan, Path):
        content = _as_one_file(scan)
        return to_bytes(read(scan)) if _kind(content, scan) is nib.MGHImage else content
    if isinstance(scan, nib.MGHImage):
        return to_bytes(from_image(scan))
    image: Any = scan
    header, data = image.header.copy(), image.dataobj
    voxels = data.get_unscaled() if nib.is_proxy(data) else np.asanyarray(data)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(getattr(data, "slope", 1), getattr(data, "inter", 0))
    return _one_file(header, voxels.astype(header.get_data_dtype()).tobytes("F"))


def replaced(content: bytes, mask: Array, values: Array) -> bytes:
    """The content of a NIfTI file with other grey values (N,) in the voxels of a mask (X, Y, Z).

    All other bytes stay. Raises LeukoError if the file holds an image of another shape.
    """
    stored_as = opened(content).dataobj
    shape = stored_as.shape[:3]
    if shape != mask.shape or math.prod(stored_as.shape) != mask.size:
        raise LeukoError(f"the scan changed since it was read: its shape is now {stored_as.shape}")
    whole = bytearray(content)
    voxels = np.ndarray(shape, stored_as.dtype, whole, stored_as.offset, order="F")
    voxels[mask] = as_type((values - stored_as.inter) / stored_as.slope, voxels.dtype)
    return bytes(whole)


def opened(content: bytes) -> Any:
    """The image that is the content of a NIfTI file."""
    return _kind(content, Path("image in memory")).from_bytes(content)


def as_image(volume: Volume) -> InMemory:
    """The volume as a nibabel image, as `write` stores it."""
    if volume.header is None:
        image = nib.Nifti1Image(volume.data, volume.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.affine, code=1)
        image.set_qform(volume.affine, code=1)
    else:
        header = volume.header.copy()
        header["cal_min"] = header["cal_max"] = 0  # the scan's display window does not fit a result
        make = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = make(volume.data, header.get_best_affine(), header)  # the header's own forms stay
    image.header.set_data_dtype(volume.data.dtype)
    image.header.set_slope_inter(1, 0)
    made: InMemory = image
    return made


def _scan(image: Any, path: Path) -> Volume:
    data = _voxels(image, path)
    bad = _not_finite(data)
    if bad:
        raise LeukoError(f"{path} has {bad} NaN or infinite voxels; replace them, for example by 0")
    if not data.any():
        raise LeukoError(f"{path} is all zeros; check that it is the right file")
    return replace(_placed(data, image, path), name=path.name)


def _load(path: Path) -> Any:
    if path.is_dir():
        raise LeukoError(f"{path} is a folder; give an image file")
    if not path.is_file():
        raise LeukoError(f"{path} does not exist or is not a file; check the path")
    content = _as_one_file(path)
    kind = _kind(content, path)
    try:
        image: Any = kind.from_bytes(content)
        voxel_bytes = image.dataobj.dtype.itemsize * math.prod(int(n) for n in image.shape)
        missing = image.header.get_data_offset() + voxel_bytes - len(content)
    except Exception as error:  # a damaged header makes nibabel fail in more ways than it documents
        raise LeukoError(
            f"{path} has a damaged header ({in_one_line(error)}); convert or copy it again"
        ) from error
    if missing > 0:  # nibabel would allocate all that memory first
        raise LeukoError(
            f"{path} is damaged or truncated: its header declares {missing} bytes more than the "
            "file has; copy or convert it again"
        )
    return _as_nifti(image, path) if kind is nib.MGHImage else image


def _kind(content: bytes, path: Path) -> Any:
    """The nibabel class of an image, identified by its first bytes."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(content):
            # Unchecked, because nibabel's own check replaces bad voxel sizes without an error.
            header = kind.header_class(content[: kind.header_class.sizeof_hdr], check=False)
            spacing = header["pixdim"][1:4].astype(float)
            if not (np.isfinite(spacing).all() and (spacing > 0).all()):
                shown = ", ".join(f"{s:g}" for s in spacing)
                raise LeukoError(
                    f"{path} has voxel sizes {shown} mm; voxel sizes must be positive: correct "
                    "pixdim in the header"
                )
            return kind
    if content[:4] == MGH:
        return nib.MGHImage
    if content[128:132] == b"DICM":
        raise LeukoError(f"{path} is a single DICOM file; give the folder of its series")
    raise LeukoError(
        f"{path} cannot be read as an image; expected NIfTI (.nii, .nii.gz, .img and .hdr) or "
        "FreeSurfer's .mgz: convert it, or copy it again if it is damaged"
    )


def _as_nifti(image: Any, path: Path) -> Any:
    """A FreeSurfer image as NIfTI; its voxel-to-world matrix becomes both sform and qform."""
    _require_invertible(image.affine, path)
    placed = nib.Nifti1Image(_voxels(image, path), image.affine)
    placed.header.set_xyzt_units("mm")
    for place in (placed.set_sform, placed.set_qform):
        place(image.affine, code=1)
    return placed


def _as_one_file(path: Path) -> bytes:
    """The unpacked bytes of an image; of a .hdr and .img pair, those of one single-file NIfTI."""
    twin = other_half(path)
    if twin is None:
        return unpacked(path)
    described, pictured = (path, twin) if ".hdr" in path.suffixes else (twin, path)
    start = unpacked(described)
    for kind in (nib.Nifti1Pair, nib.Nifti2Pair):
        size = kind.header_class.sizeof_hdr
        if kind.header_class.may_contain_header(start):
            header = kind.header_class(start[:size], check=False)
            voxels = unpacked(pictured)[max(0, int(header["vox_offset"])) :]
            return _one_file(header, voxels)
    raise LeukoError(
        f"{path} is not NIfTI but possibly Analyze, which does not store left and right; convert "
        "it to .nii.gz"
    )


def _one_file(header: Any, voxels: bytes) -> bytes:
    """A single-file NIfTI of a header and voxels as they are stored."""
    header["magic"] = header.single_magic
    header["vox_offset"] = header.sizeof_hdr + 4  # four zero bytes: no header extension follows
    described_grid: bytes = header.binaryblock
    return described_grid + bytes(4) + voxels


def _voxels(image: Any, path: Path) -> Array:
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        seen = "x".join(str(n) for n in image.shape)
        raise LeukoError(f"{path} has shape {seen}; expected one 3-D image")
    if image.get_data_dtype().kind not in "iuf":
        raise LeukoError(
            f"{path} holds {image.get_data_dtype()} voxels; expected grey values, integers or "
            "floating point: convert it"
        )
    try:
        data = np.asanyarray(image.dataobj).reshape(shape)
    except Exception as error:  # as above, from a damaged header
        raise LeukoError(
            f"{path} is damaged or truncated ({in_one_line(error)}); copy or convert it again"
        ) from error
    native: Array = data.astype(data.dtype.newbyteorder("="), copy=False)
    return native


def _not_finite(data: Array) -> int:
    """The number of NaN or infinite voxels."""
    return data.size - int(np.count_nonzero(np.isfinite(data))) if data.dtype.kind == "f" else 0


def _labelled(path: Path) -> Volume:
    """A label image, a mask or a probability map. NaN, which means outside, becomes 0; a value that
    differs from a whole number by no more than half a step of the stored scale is rounded to it."""
    return _as_labels(_load(path), path)


def _as_labels(image: Any, path: Path) -> Volume:
    data = _voxels(image, path)
    if _not_finite(data):
        outside = np.isnan(data)
        data = np.where(outside, 0, data)
        infinite = _not_finite(data)
        if infinite:
            raise LeukoError(
                f"{path} has {infinite} infinite voxels; replace them, for example by 0"
            )
        log.warning("%s: %d NaN voxels are read as background", path, np.count_nonzero(outside))
    step = abs(float(getattr(image.dataobj, "slope", 1)))
    if image.get_data_dtype().kind in "iu" and step < COARSEST_STEP:
        whole = np.rint(data)
        data = np.where(np.abs(data - whole) <= 0.51 * step, whole, data)
    return _placed(data, image, path)


def _placed(data: Array, image: Any, path: Path) -> Volume:
    header = image.header.copy()
    header.set_data_shape(data.shape)
    volume = Volume(data, _affine(image, path), header, name=str(path))
    require_head_size(volume)
    return volume


def _affine(image: Any, path: Path) -> Array:
    header = image.header
    affine = np.array(image.affine, dtype=float)
    unit = int(header["xyzt_units"]) % 8  # the other bits are the unit of time
    if unit not in UNIT_MM:
        raise LeukoError(
            f"{path} has the unknown length unit {unit}; expected 1 (m), 2 (mm) or 3 (micron): "
            "correct xyzt_units in the header"
        )
    affine[:3] *= UNIT_MM[unit]
    _require_invertible(affine, path)
    _warn_of_conflict(header, UNIT_MM[unit], path)
    return _orthonormalised(affine, path)


def _require_invertible(affine: Array, path: Path) -> None:
    axes = affine[:3, :3]
    usable = np.abs(affine[:3]).max() < 1 / TINY_MM and np.abs(axes).max(axis=0).min() > TINY_MM
    if not usable or abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) <= FLAT:
        raise LeukoError(
            f"{path} has a singular voxel-to-world matrix; correct its sform or qform, with "
            "nibabel or c3d"
        )


def _warn_of_conflict(header: Any, unit_mm: float, path: Path) -> None:
    sform, qform = header.get_sform(coded=True)[0], _qform(header)
    if sform is None and qform is None:
        log.warning("%s: neither sform nor qform is set; orientation and position unknown", path)
    elif sform is not None and qform is not None:
        corners = np.array(np.meshgrid(*[(0, n) for n in header.get_data_shape()[:3]]))
        apart = np.abs((sform - qform)[:3] @ np.vstack([corners.reshape(3, -1), np.ones(8)])).max()
        if apart > 0.1 * float(min(header["pixdim"][1:4])):
            apart *= unit_mm
            log.warning("%s: sform and qform differ by up to %.3g mm; used the sform", path, apart)


def _qform(header: Any) -> Array | None:
    try:
        qform: Array | None = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):  # an invalid quaternion; the sform decides
        return None
    return qform


def _orthonormalised(affine: Array, path: Path) -> Array:
    """The affine; direction cosines that are off by rounding are made exactly perpendicular."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    left, _, right = np.linalg.svd(directions)
    nearest = left @ right
    off = float(np.abs(directions - nearest).max())
    if off <= ROUNDING:
        return affine
    if off > NOT_A_SHEAR:
        log.warning("%s: axes are not perpendicular (off by %.2g); kept unchanged", path, off)
        return affine
    log.warning("%s: direction cosines are off by %.2g; made perpendicular", path, off)
    perpendicular = affine.copy()
    perpendicular[:3, :3] = nearest * spacing
    return perpendicular
