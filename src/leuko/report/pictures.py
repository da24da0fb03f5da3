"""Pictures of slices with the outlines of masks.

Slices (H, W) are shown as they are, first row at the top.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from leuko.volume import Array

# Colour-blind people can distinguish these from grey, from the yellow of fat in colour slices, and
# from each other.
FOUND, KNOWN = "#ff4d00", "#36c9ff"
FINE = 2  # slices are drawn this many times larger, so that outlines are smooth
OUTLINE = 2  # width of an outline in pixels of the larger picture; it lies outside the mask
TITLE_PX, GAP_PX = 34, 4
COLUMNS, SLICE_PX = 6, 190  # of a mosaic: slices in a row, width of a slice
METHOD_PX, EXAMPLE_PX = 270, 420  # width of a slice
BRIGHTEST = 200  # grey value shown as white in a mosaic


@dataclass(frozen=True, eq=False)
class Example:
    """A slice (H, W) of a subject, rows to the right and columns to the front.

    FLAIR, labelled mask, masks found before and after, and the Dice of both over all slices.
    `aspect` is a pixel's length to the front / its length to the right.
    """

    name: str
    flair: Array
    labelled: Array
    found: Sequence[Array]
    dice: Sequence[float]
    aspect: float = 1.0


def mosaic(
    slices: Sequence[Array],
    kinds: Sequence[Array],
    colours: Mapping[int, str],
    *,
    title: str,
    marks: Sequence[str],
    aspect: float = 1.0,
    most: int = 24,
    later: Sequence[int] = (),
    chosen: Sequence[int] | None = None,
    columns: int = COLUMNS,
) -> Image.Image:
    """Slices (H, W), 0 to 255, with outlines of the kinds that have a colour.

    They are those `chosen`, from 0; by default up to `most`, as by `chosen_slices`. `kinds` (H, W)
    are 0 where there is nothing; `aspect` is a pixel's height / width. `marks` label the left and
    the right of the first slice. Slice numbers count from 1.
    """
    chosen = chosen_slices(kinds, most, later=later) if chosen is None else chosen
    panels = []
    for k in chosen:
        outlines = [(kinds[k] == kind, colour) for kind, colour in colours.items()]
        panel = _panel(slices[k], outlines, SLICE_PX, aspect=aspect, brightest=BRIGHTEST)
        _write(panel, (5, panel.height - 5), str(k + 1), "ls")
        panels.append(panel)
    middle = panels[0].height / 2
    for x, anchor, mark in zip((5, panels[0].width - 5), ("lm", "rm"), marks, strict=False):
        _write(panels[0], (x, middle), mark, anchor)
    part = "" if len(chosen) == len(slices) else f", {len(chosen)} of {len(slices)} slices"
    return _in_rows(panels, title and title + part, columns)


def heat_map(
    behind: Sequence[Array], shares: Sequence[Array], *, title: str, marks: Sequence[str]
) -> Image.Image:
    """Slices (H, W) of grey values 0 to 255 under shares of 0 to 1, in rows, with a colour bar.

    Rows of a slice run to the right, columns to the front. The largest share has the brightest
    colour; `marks` are written on the slices.
    """
    most = max(float(np.max(share)) for share in shares) or 1.0
    panels = []
    for grey, share, mark in zip(behind, shares, marks, strict=True):
        heat = upright(share)[..., None] / most
        shown = np.where(heat > 0, _hot(heat[..., 0]), upright(grey)[..., None])
        panel = _panel(shown.astype(np.uint8), [], SLICE_PX)
        _write(panel, (5, panel.height - 5), mark, "ls")
        panels.append(panel)
    _write(panels[0], (5, panels[0].height / 2), "R", "lm")
    whole = _in_rows(panels, title, columns=len(panels) // 2)
    bar = Image.new("RGB", (whole.width, whole.height + TITLE_PX))
    bar.paste(whole, (0, 0))
    steps = np.tile(np.linspace(0, 1, whole.width // 3), (12, 1))
    left, top = whole.width // 3, whole.height + 12
    bar.paste(Image.fromarray(_hot(steps).astype(np.uint8)), (left, top))
    for x, anchor, end in ((left - 8, "rm", 0.0), (2 * left + 8, "lm", most)):
        _write(bar, (x, top + 6), f"{100 * end:.3g} %", anchor)
    return bar


def _hot(part: Array) -> Array:
    """Colours (..., 3), 0 to 255, from dark red over orange to light yellow, of values 0 to 1."""
    colours = np.array([[90, 0, 0], [230, 60, 0], [255, 170, 0], [255, 255, 200]], dtype=float)
    places = np.linspace(0, 1, len(colours))
    hot: Array = np.stack([np.interp(part, places, channel) for channel in colours.T], axis=-1)
    return hot


def chosen_slices(kinds: Sequence[Array], most: int, *, later: Sequence[int] = ()) -> list[int]:
    """At most `most` slices, in order: first those with kinds other than 0, then those with only
    the kinds `later`, then the others; evenly spaced within each group."""
    ranks = [int(kind.any()) + int(kind[~np.isin(kind, later)].any()) for kind in kinds]
    chosen: list[int] = []
    for wanted in sorted(set(ranks), reverse=True):
        group = [k for k, rank in enumerate(ranks) if rank == wanted]
        room = min(most - len(chosen), len(group))
        chosen += [group[round(k)] for k in np.linspace(0, len(group) - 1, room)]
    return sorted(chosen)


def method_steps(slice_: Array, mask: Array, reference: Array) -> Image.Image:
    """Steps of the method on a slice: FLAIR, T1, residue, colour image, outlines of both masks.

    `slice_` (H, W, 3), uint8, holds residue, FLAIR and T1; its rows run to the right, its columns
    to the front. `mask` and `reference` (H, W) are boolean.
    """
    residue, flair, t1 = np.moveaxis(slice_, -1, 0)
    outlines = [(upright(reference), KNOWN), (upright(mask), FOUND)]
    panels = []
    for title, image, outlined in (
        ("FLAIR", flair, []),
        ("T1", t1, []),
        ("residue of area opening", residue, []),
        ("colour image", slice_, []),
        ("found (orange), known (blue)", flair, outlines),
    ):
        panel = _panel(upright(image), outlined, METHOD_PX)
        panels.append(_in_rows([panel], title))
    return _in_rows(panels)


def before_after(example: Example) -> Image.Image:
    """The slice before and after, with outlines of the labelled and of the found mask."""
    labelled = (upright(example.labelled), KNOWN)
    panels = [
        _panel(
            upright(example.flair),
            [labelled, (upright(found), FOUND)],
            EXAMPLE_PX,
            aspect=example.aspect,
        )
        for found in example.found
    ]
    return _in_rows(panels)


def as_jpeg(picture: Image.Image, quality: int = 75) -> bytes:
    """The picture as JPEG; `quality` is that of Pillow, 0 to 95."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _panel(
    image: Array,
    outlines: Sequence[tuple[Array, str]],
    width: int,
    *,
    aspect: float = 1.0,
    brightest: float | None = None,
) -> Image.Image:
    """A slice (H, W) or (H, W, 3) `width` pixels wide, with outlines of masks.

    Values from 0 to `brightest`, by default the 99.8th percentile, become black to white.
    """
    if image.ndim == 2:
        top = brightest or max(1.0, float(np.percentile(image, 99.8)))
        image = (255 / top * image.astype(np.float32)).clip(0, 255).astype(np.uint8)
    rows, columns = image.shape[:2]
    size = width, max(1, round(width * aspect * rows / columns))
    large = size[0] * FINE, size[1] * FINE
    shown = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    shown = shown.resize(large, Image.Resampling.BICUBIC)
    for mask, colour in outlines:
        if mask.any():
            grey = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
            smooth = grey.resize(large, Image.Resampling.BILINEAR)
            inside = smooth.point([0] * 128 + [255] * 128)
            # A square of 2 * OUTLINE + 1 pixels that touches the mask has a mean above 0.
            near = inside.filter(ImageFilter.BoxBlur(OUTLINE)).point([0] + [255] * 255)
            edge = ImageChops.subtract(near, inside)
            shown.paste(colour, mask=edge)
    return shown.resize(size, Image.Resampling.BOX)


def _in_rows(panels: Sequence[Image.Image], title: str = "", columns: int = COLUMNS) -> Image.Image:
    """Panels of one size side by side, in rows of at most `columns`, under a title, on black."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, height = panels[0].size
    top = TITLE_PX if title else 0
    size = columns * (width + GAP_PX) - GAP_PX, top + rows * (height + GAP_PX) - GAP_PX
    whole = Image.new("RGB", size)
    for k, panel in enumerate(panels):
        row, column = divmod(k, columns)
        whole.paste(panel, (column * (width + GAP_PX), top + row * (height + GAP_PX)))
    if title:
        _write(whole, (size[0] / 2, top / 2), title, "mm")
    return whole


def _write(picture: Image.Image, place: tuple[float, float], words: str, anchor: str) -> None:
    """Write white words on a picture; `anchor` is one of Pillow's text anchors."""
    font = ImageFont.load_default(14)
    ImageDraw.Draw(picture).text(place, words, fill="white", font=font, anchor=anchor)


def upright(image: Array) -> Array:
    """The slice with the front up and the right on the left, the radiological convention."""
    return np.flip(np.swapaxes(image, 0, 1), axis=(0, 1))
