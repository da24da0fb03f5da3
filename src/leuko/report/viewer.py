"""Scans in the form that a page shows: slices as small JPEGs, lesions as runs of voxels."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from leuko.report.pictures import as_jpeg, upright
from leuko.volume import Array, Volume, bounding_box

BUDGET_BYTES = 1_900_000  # of the slices and lesions of a page; base64 makes them a third larger
# Longest side in pixels and quality of the JPEGs, best first.
FINENESS = ((320, 88), (320, 75), (256, 70), (224, 60), (192, 50), (160, 40), (128, 30), (96, 20))
MAP_SIDE, MAP_QUALITY = 160, 50  # of the JPEGs of the probability, which are mostly black
SAMPLE = 6  # every 6th slice is enough to estimate the size of all
HEAD = 20  # of 255: brighter voxels belong to the head
SPARSE = 0.03  # of the fullest plane's bright voxels: planes with fewer show noise, or an ear
RIM_KIND = 5  # in `Pane.kinds`: caps and rims; smaller numbers are regions
MARGIN = 2  # voxels around the shown region
MARKS = (
    ("A", "P", "S", "I"),
    ("R", "L", "S", "I"),
    ("R", "L", "A", "P"),
)  # left, right, top, bottom


@dataclass(frozen=True, eq=False)
class Pane:
    """One scan with its lesions, all arrays (X, Y, Z) on one grid whose axes run R, A, S."""

    title: str
    grid: Volume
    images: Mapping[str, Array]  # uint8, by name; the first is shown first
    ids: Array  # the lesion number of each voxel, 0 for none
    kinds: Array  # uint8, the kind, and so the colour, of each voxel, 0 for none
    in_view: Array | None = None  # bool, voxels to show; by default the head and all lesions
    probability: Array | None = None  # of WMH, 0 to 1

    @property
    def across(self) -> int:
        """The axis across the slices, which are shown as they were acquired."""
        return self.grid.through_plane_axis

    @property
    def has_three_planes(self) -> bool:
        """Whether planes across the slices show as much as the slices, which are axial."""
        return self.grid.is_nearly_isotropic

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The bounding box of the voxels to show, with a margin and all slices."""
        first = next(iter(self.images.values()))
        shown = self._head(first) | (self.kinds > 0) if self.in_view is None else self.in_view
        if not shown.any():
            return tuple(slice(0, count) for count in shown.shape)
        return tuple(
            slice(0, count)
            if axis == self.across
            else slice(max(0, part.start - MARGIN), min(count, part.stop + MARGIN))
            for axis, (part, count) in enumerate(zip(bounding_box(shown), shown.shape, strict=True))
        )

    def _head(self, image: Array) -> Array:
        """The bright voxels of an image, bool, without those in planes that hold few."""
        head: Array = image > HEAD
        bright = head.copy()
        for axis in range(3):
            counts = np.count_nonzero(bright, axis=tuple(k for k in range(3) if k != axis))
            np.moveaxis(head, axis, 0)[counts < SPARSE * counts.max()] = False
        return head

    @property
    def pixel_aspect(self) -> float:
        """A pixel's height / width on a slice."""
        width_mm, height_mm = np.delete(np.array(self.grid.spacing_mm), self.across)
        return float(height_mm / width_mm)

    @property
    def marks(self) -> tuple[str, ...]:
        """The direction at the left, right, top and bottom of a slice."""
        return MARKS[self.across]

    def slices(self, array: Array) -> list[Array]:
        """An array (X, Y, Z) on the grid as slices (H, W) of the box, in radiological convention.

        The patient's right is on the left; on sagittal slices the front is on the left.
        """
        across = np.moveaxis(array[self.box], self.across, 0)
        return [upright(image) for image in across]


def encoded(panes: Sequence[Pane]) -> list[dict[str, Any]]:
    """The panes as JSON for the page's script; slices are compressed to fit `BUDGET_BYTES`."""
    drawn = [_drawn(pane) for pane in panes]
    budget = BUDGET_BYTES - 3 / 4 * len(json.dumps([pane["runs"] for pane in drawn]))
    for side, quality in FINENESS:
        sample = sum(
            len(_jpeg(image, side, quality))
            for pane in panes
            for array in pane.images.values()
            for image in pane.slices(array)[::SAMPLE]
        )
        if sample * SAMPLE <= budget:
            break
    return [
        {
            **lesions,
            "images": {
                name: _pictures(pane.slices(array), side, quality)
                for name, array in pane.images.items()
            },
            "probability": None
            if pane.probability is None
            else _pictures(pane.slices(_in_8_bit(pane.probability)), MAP_SIDE, MAP_QUALITY),
        }
        for pane, lesions in zip(panes, drawn, strict=True)
    ]


def fullest_slice(pane: Pane) -> int:
    """The slice, from 0, with the most lesion voxels; without lesions the middle one."""
    others = tuple(axis for axis in range(3) if axis != pane.across)
    counts = np.count_nonzero(pane.ids, axis=others)
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def lesion_slices(pane: Pane) -> list[int]:
    """The slice, from 0, with the most voxels of each lesion, by id from 0."""
    inside = pane.ids > 0
    ids, at = pane.ids[inside].astype(np.intp), np.nonzero(inside)[pane.across]
    slices = pane.ids.shape[pane.across]
    counts = np.bincount(ids * slices + at, minlength=slices * (int(ids.max(initial=0)) + 1))
    return [int(k) for k in counts.reshape(-1, slices).argmax(axis=1)]


def _drawn(pane: Pane) -> dict[str, Any]:
    """A pane as JSON, without its slices."""
    ids, kinds = pane.slices(pane.ids), pane.slices(pane.kinds)
    height, width = ids[0].shape
    return {
        "title": pane.title,
        "width": width,
        "height": height,
        "aspect": round(width / (height * pane.pixel_aspect), 4),
        "marks": pane.marks,
        "voxel_mm": _voxel_mm(pane),
        "span": _span(pane) if pane.has_three_planes else None,
        "start": fullest_slice(pane),
        "runs": [_runs(*pair) for pair in zip(ids, kinds, strict=True)],
    }


def _voxel_mm(pane: Pane) -> list[float]:
    """Size of a voxel along the width and the height of a slice, and across the slices."""
    width_mm, height_mm = np.delete(np.array(pane.grid.spacing_mm), pane.across)
    across_mm = pane.grid.spacing_mm[pane.across]
    return [round(float(mm), 4) for mm in (width_mm, height_mm, across_mm)]


def _span(pane: Pane) -> list[int]:
    """The first and the last slice, from 0, that show something."""
    images = [pane.slices(image) for image in pane.images.values()]
    seen = [k for k, slices in enumerate(zip(*images, strict=True)) if np.max(slices) > HEAD]
    return [seen[0], seen[-1]] if seen else [0, len(images[0]) - 1]


def _in_8_bit(probability: Array) -> Array:
    grey: Array = np.rint(255 * probability).astype(np.uint8)
    return grey


def _pictures(slices: Sequence[Array], side: int, quality: int) -> list[str]:
    return [base64.b64encode(_jpeg(image, side, quality)).decode() for image in slices]


def _jpeg(image: Array, side: int, quality: int) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = side / max(picture.size)
    if scale < 1:
        size = [max(1, round(scale * pixels)) for pixels in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR)
    return as_jpeg(picture, quality)


def _runs(ids: Array, kinds: Array) -> list[int]:
    """Start, length, id and kind of each run of equal voxels in a slice, row by row, flattened."""
    flat, kind = ids.ravel().astype(np.int64), kinds.ravel().astype(np.int64)
    starts_row = np.arange(len(flat)) % ids.shape[1] == 0
    changes = np.flatnonzero(starts_row | np.diff(flat * 256 + kind, prepend=-1).astype(bool))
    lengths = np.diff(changes, append=len(flat))
    inside = kind[changes] > 0
    runs = np.stack([changes, lengths, flat[changes], kind[changes]], axis=1)[inside]
    return [int(value) for value in runs.ravel()]
