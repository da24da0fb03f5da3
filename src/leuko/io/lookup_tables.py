"""Lookup tables of label images: the name and colour of each label, as viewers read them.

The viewers share no format. FSLeyes reads `.lut`, ITK-SNAP its label descriptions, FreeSurfer and
its relatives six columns, 3D Slicer `.ctbl`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

# Okabe and Ito's colours, which colour-blind people tell apart.
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PINK = "#0072b2", "#d55e00", "#cc79a7"
CYCLE = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PINK)
BACKGROUND = "#000000"
COLUMNS = ("index", "name", "color")  # of a dseg.tsv in BIDS


@dataclass(frozen=True)
class Label:
    """A value of a label image, above 0."""

    number: int
    name: str
    colour: str  # as #rrggbb

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour.removeprefix("#"))
        return red, green, blue

    @property
    def word(self) -> str:
        """The name without spaces, for formats whose columns are separated by spaces."""
        return "_".join(self.name.split())


def coloured(names: Iterable[tuple[int, str]]) -> list[Label]:
    """Labels of numbers and names that have no colours of their own."""
    return [
        Label(number, name, colour)
        for (number, name), colour in zip(names, cycle(CYCLE), strict=False)
    ]


def rows(labels: Iterable[Label]) -> list[tuple[int, str, str]]:
    """The rows of a dseg.tsv with the columns `COLUMNS`."""
    return [(label.number, label.name, label.colour) for label in labels]


def write(folder: Path, stem: str, labels: Sequence[Label]) -> None:
    """Write the tables of a label image into a folder, in the format of each viewer.

    There is no `.lut` for fewer than two labels: FSLeyes cannot read one.
    """
    folder.mkdir(exist_ok=True)
    tables = {
        "_freesurfer.txt": _freesurfer(labels),
        "_itksnap.txt": _itksnap(labels),
        ".ctbl": _slicer(labels),
    }
    if len(labels) > 1:
        tables[".lut"] = _fsleyes(labels)
    for ending, lines in tables.items():
        (folder / f"{stem}{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _fsleyes(labels: Iterable[Label]) -> list[str]:
    """Number, three colours from 0 to 1, name. Its reader needs the first line to be a comment."""
    return [
        "# number red green blue name",
        *(
            " ".join([str(label.number), *(f"{c / 255:.5f}" for c in label.rgb), label.name])
            for label in labels
        ),
    ]


def _freesurfer(labels: Iterable[Label]) -> list[str]:
    """Number, name, three colours and transparency."""
    return [
        "# number name red green blue transparency",
        "0 background 0 0 0 0",
        *(f"{label.number} {label.word} {' '.join(map(str, label.rgb))} 0" for label in labels),
    ]


def _slicer(labels: Iterable[Label]) -> list[str]:
    """Number, name, three colours and opacity."""
    return [
        "# Color table file",
        "0 background 0 0 0 0",
        *(f"{label.number} {label.word} {' '.join(map(str, label.rgb))} 255" for label in labels),
    ]


def _itksnap(labels: Iterable[Label]) -> list[str]:
    """Number, three colours, opacity, visible on slices and in 3-D, name in quotes."""
    return [
        "# ITK-SnAP Label Description File",
        "# number red green blue opacity visible mesh name",
        '0 0 0 0 0 0 0 "Clear Label"',
        *(
            f'{label.number} {" ".join(map(str, label.rgb))} 1 1 1 "{label.name}"'
            for label in labels
        ),
    ]
