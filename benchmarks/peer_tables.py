"""What `peers.py` found, as tables in Markdown."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peer_methods import NAMES

from leuko.evaluation.evaluate import from_json, mean_with_interval

COLUMNS = {"dsc": "DSC", "lesion_f1": "lesion F1", "h95_mm": "H95, mm"}
# How many times as long as Leuko's a peer was expected to take.
ASKED = {"unet-ensemble": 15, "dynunet": 15, "dynunet-mirrored": 100}

OURS = {"leuko": "Leuko minus", "leuko-half": "Leuko at half width minus"}

Rows = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # by method, subject, measure


def as_text(results: Mapping[str, Any]) -> str:
    """All that there is of: machine, training, accuracy on each set of scans, speed."""
    blocks = []
    if "machine" in results:
        blocks.append(", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    if "training" in results:
        head = ["trained", "seconds", "steps", "images", "last loss"]
        blocks.append(table(head, trained(results)))
    for key, found in results.items():
        if key.startswith("accuracy-"):
            count = len(found["leuko"])
            title = f"{key.removeprefix('accuracy-')}, {count} subjects"
            blocks.append(table([title, *COLUMNS.values()], means(found)))
            blocks += (
                table([title, *COLUMNS.values()], differences(found, our))
                for our, title in OURS.items()
                if our in found
            )
    if "speed" in results:
        head = ["one pair", "M parameters", "seconds", "asked", "times Leuko's"]
        head += ["times half width's", "times float32's", "peak MB"]
        blocks.append(table(head, speeds(results["speed"])))
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def trained(results: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for name, account in results["training"].items():
        numbers = (f"{account[key]:.0f}" for key in ("seconds", "steps", "images"))
        yield name, *numbers, f"{account['loss']:.2f}"


def means(found: Rows) -> Iterator[Sequence[str]]:
    for name in filter(found.__contains__, NAMES):
        yield NAMES[name], *(interval(values(found[name], column)) for column in COLUMNS)


def differences(found: Rows, our: str) -> Iterator[Sequence[str]]:
    """Of the subjects in which both are defined."""
    for name in filter(found.__contains__, NAMES):
        if name not in OURS:
            cells = []
            for column in COLUMNS:
                pairs = zip(values(found[our], column), values(found[name], column), strict=True)
                cells.append(interval([ours - theirs for ours, theirs in pairs]))
            yield NAMES[name], *cells


def values(rows: Mapping[str, Mapping[str, float | None]], column: str) -> list[float]:
    """nan where the measure is undefined, as the distance from an empty mask."""
    return [from_json(row)[column] for row in rows.values()]


def interval(numbers: Sequence[float]) -> str:
    """Mean and 95 % interval; with the count where some are undefined."""
    mean, low, high = mean_with_interval(numbers)
    known = sum(not math.isnan(number) for number in numbers)
    digits = 1 if abs(mean) >= 10 else 3
    text = f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return text if known == len(numbers) else f"{text}, of {known}"


def speeds(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for name, row in found.items():
        asked = ASKED.get(name)
        yield (
            NAMES[name],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['seconds']:.2f}",
            f"at least {asked}" if asked else "",
            *(f"{times:.1f}" for times in row["times"].values()),
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
        )
