"""The data of the bundled model: sources, people and held-out heads, from sources.tsv."""

from pathlib import Path

from leuko.training.material import Item, Table, find_scans

SOURCES = Table.read(Path(__file__).with_name("sources.tsv"))
# Never trained with: synthetic scans of these heads validate.
HELD_OUT = tuple(name for name, origin in SOURCES.rows if not origin.weight)


def scans(folder: Path) -> list[Item]:
    """The labelled scans in a folder, sorted by name."""
    return find_scans(folder, SOURCES)


def source(scan: str) -> str:
    """The data set that a scan is of."""
    return SOURCES.origin(scan).source


def person(scan: str) -> str:
    """Whose scan it is."""
    return SOURCES.origin(scan).person
