"""The report of an adaptation: the model before and after, on subjects not used in training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from leuko.evaluation.metrics import MEASURES, Measure
from leuko.io.provenance import versions
from leuko.report.html import document, drawing, facts, picture, plain, section, shown, text
from leuko.report.pictures import Example, as_jpeg, before_after
from leuko.report.plots import dice_change
from leuko.training.adaptation import Change, Validation, people_text, signed
from leuko.training.dataset import person

SHOWN = ("dsc", "lesion_f1", "lesion_recall", "h95_mm", "avd_percent")
ON_CARDS = ("dsc", "lesion_f1", "h95_mm", "avd_percent")
MEAN = "mean of people"
NO_BREAK = "\N{NO-BREAK SPACE}"
SHOWN_SLICES = (
    "The subjects with the best, the median and the worst change of Dice, each on the slice where "
    "the masks before and after differ most. The masks of all subjects are in the model's folder, "
    "in masks-before and masks."
)


def as_html(validation: Validation, shown: Sequence[Example], about: Mapping[str, str]) -> str:
    """The report as one HTML file, with slices of the examples `shown` and the training settings
    `about`."""
    dice = {
        name: (validation.before[name]["dsc"], row["dsc"]) for name, row in validation.after.items()
    }
    caption = "Dice of each subject, before and after"
    settings = {name: text(value) for name, value in _settings(validation, about)}
    verdict = "".join(f"<p>{text(sentence)}</p>" for sentence in validation.sentences())
    return document(
        title=f"{validation.model}: {validation.verdict}",
        subtitle=f"Adapted from {validation.origin}; Leuko {versions()['leuko']}; "
        f"{datetime.now(UTC):%Y-%m-%d}",
        main=[
            section("Verdict", verdict, name="alert warn" if _is_bad(validation) else ""),
            section(
                "Before and after, on subjects not used in training", facts(_facts(validation))
            ),
            section(
                "Each subject",
                drawing(dice_change(dice), caption),
                _table(validation),
            ),
            section(
                "Examples",
                f"<p>{text(SHOWN_SLICES)}</p>" if shown else "",
                *map(_shown, shown),
            ),
            section("Training", plain("Settings", settings.items())),
        ],
        data={},
    )


def as_markdown(validation: Validation, about: Mapping[str, str]) -> str:
    """The report as Markdown, without pictures."""
    head = ["subject", *(f"{name} {when}" for name, times in _columns() for when in times)]
    lines = [
        f"# {validation.model}: {validation.verdict}",
        "",
        *(f"{sentence}\n" for sentence in validation.sentences()),
        "| measure | before | after | change | 95 % interval |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in changes_as_cells(validation)),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in _subject_rows(validation)),
        "",
        *(f"- {name}: {value}" for name, value in _settings(validation, about)),
    ]
    return "\n".join(lines) + "\n"


def changes_as_cells(validation: Validation) -> Iterator[tuple[str, list[str]]]:
    """For each measure: mean before and after, change, and interval of the change."""
    for measure in _measures():
        change = validation.change(measure.key)
        digits = _digits(measure)
        means = [shown(value, digits) for value in (change.before, change.after)]
        yield (
            _with_unit(measure),
            [*means, signed(change.change, digits), _interval(change, digits)],
        )


def examples(validation: Validation) -> list[str]:
    """The subjects with the best, the median and the worst change of Dice."""
    losses = {n: validation.before[n]["dsc"] - row["dsc"] for n, row in validation.after.items()}
    order = sorted(
        (n for n, loss in losses.items() if not math.isnan(loss)), key=losses.__getitem__
    )
    return list(dict.fromkeys([order[0], order[len(order) // 2], order[-1]])) if order else []


def _is_bad(validation: Validation) -> bool:
    return (
        validation.verdict != "better"
        or validation.is_worse_on_synthetic
        or validation.finds_more_in_healthy
        or bool(validation.doubts)
    )


def _measures() -> Iterator[Measure]:
    return (measure for measure in MEASURES if measure.key in SHOWN)


def _with_unit(measure: Measure) -> str:
    return f"{measure.name}, {measure.unit}" if measure.unit else measure.name


def _digits(measure: Measure) -> int:
    return 1 if measure.unit else 3


def _facts(validation: Validation) -> Iterator[tuple[str, str, str]]:
    for measure in _measures():
        if measure.key in ON_CARDS:
            name = f"{measure.name}, {measure.better} is better"
            yield _fact(name, validation.change(measure.key), measure)
    if validation.synthetic_change is not None:
        name = "Dice on synthetic scans (only the change matters)"
        yield _fact(name, validation.synthetic_change, next(_measures()))


def _fact(name: str, change: Change, measure: Measure) -> tuple[str, str, str]:
    digits = _digits(measure)
    unit = f" {measure.unit}" if measure.unit else ""
    values = f"{shown(change.before, digits)} → {shown(change.after, digits)}{unit}"
    parts = (f"{signed(change.change, digits)},", "95 % interval", _interval(change, digits))
    return name, values, " ".join(part.replace(" ", NO_BREAK) for part in parts)


def _interval(change: Change, digits: int) -> str:
    return f"{signed(change.low, digits)} to {signed(change.high, digits)}"


def _columns() -> Iterator[tuple[str, tuple[str, ...]]]:
    """The groups of columns of the table of subjects."""
    yield "volume, mL", ("labelled", "before", "after")
    yield from ((_with_unit(m), ("before", "after")) for m in _measures())


def _subject_rows(validation: Validation) -> Iterator[tuple[str, list[str]]]:
    """The cells of each subject, and of the mean over people."""
    for name, after in validation.after.items():
        rows = (validation.before[name], after)
        volumes = [after["reference_ml"], *(row["prediction_ml"] for row in rows)]
        yield (
            name,
            [shown(volume, 1) for volume in volumes]
            + [shown(row[m.key], _digits(m)) for m in _measures() for row in rows],
        )
    changes = {m: validation.change(m.key) for m in _measures()}
    volume, labelled = (validation.change(key) for key in ("prediction_ml", "reference_ml"))
    yield (
        MEAN,
        [shown(value, 1) for value in (labelled.after, volume.before, volume.after)]
        + [shown(v, _digits(m)) for m, c in changes.items() for v in (c.before, c.after)],
    )


def _table(validation: Validation) -> str:
    names = "".join(
        f'<th colspan="{len(times)}" scope="colgroup">{text(name)}</th>'
        for name, times in _columns()
    )
    times = "".join(f'<th scope="col">{when}</th>' for _, group in _columns() for when in group)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in _subject_rows(validation)
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Measures of each subject">'
        '<table class="pairs"><caption>Measures of each subject</caption>'
        f"<thead><tr><td></td>{names}</tr><tr><td></td>{times}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _shown(example: Example) -> str:
    labelled = "labelled in blue" if example.labelled.any() else "nothing labelled on this slice"
    caption = (
        f"{example.name}: before (left) and after (right), mask in orange, {labelled}; "
        f"Dice {example.dice[0]:.2f}, {example.dice[1]:.2f}"
    )
    image = picture(as_jpeg(before_after(example)), caption)
    return f"<figure><figcaption>{text(caption)}</figcaption>{image}</figure>"


def _settings(validation: Validation, about: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    scans, persons = len(validation.after), len({person(name) for name in validation.after})
    folds = f"{scans} of {people_text(persons)} in {len(validation.folds)} folds"
    how = "each was segmented with a model trained on the other folds with the same settings"
    yield "scans", f"{folds}; {how}"
    yield from about.items()
    yield "intervals", "Student's t interval of the mean change; scans of one person count once"
    yield "to go back", f"{validation.origin} is unchanged; leuko segment --model accepts both"
