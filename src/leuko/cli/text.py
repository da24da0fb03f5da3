"""Formats results and progress for the terminal."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leuko.longitudinal.changes import Changes
    from leuko.longitudinal.compare import Comparison
    from leuko.results import Segmentation
    from leuko.training.adaptation import Validation
    from leuko.training.loop import Progress as At


QUIET_SECONDS = 60.0  # longest time between two lines if stderr is no terminal


@contextmanager
def progress_bar(
    *, shown: bool = True
) -> Iterator[tuple[Callable[["At"], None], Callable[[str], None]]]:
    """Callbacks for the progress of a training: `on_step`, and `doing` for the name of a task.

    They draw a progress bar on a terminal, else print at least one line per minute. Nothing is
    printed unless `shown`.
    """
    if not shown:
        yield lambda _: None, lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, numbers="")
    said = -math.inf

    def say(line: str) -> None:
        nonlocal said
        if not console.is_terminal:
            print(line, file=sys.stderr, flush=True)
            said = time.monotonic()

    def on_step(at: "At") -> None:
        steps = f"{at.step}/{at.steps}"
        numbers = f"loss {at.loss:.4g}  {at.images_per_second:.1f} images/s"
        bar.update(
            task,
            description="training",
            total=at.steps,
            completed=at.step,
            numbers=f"{steps}  {numbers}",
        )
        is_due = at.step % max(1, at.steps // 10) == 0 or at.step == at.steps
        if is_due or time.monotonic() - said >= QUIET_SECONDS:
            say(f"step {steps}  {numbers}")

    def doing(what: str) -> None:
        bar.update(task, description=what, total=None, numbers="")
        say(what)

    with bar:
        yield on_step, doing


FEWEST_FOR_SPEED = 3  # subjects done before the speed is printed


@contextmanager
def cohort_progress(total: int, workers: int | None) -> Iterator[Callable[[str, str | None], None]]:
    """A callback for each finished subject, with its name and why it failed (None: done).

    On a terminal, shows how many subjects are in each state; else prints a line for each tenth of
    the subjects. Failures are always printed.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stderr)
    start, count = time.monotonic(), {"done": 0, "failed": 0}

    def states() -> str:
        left = total - sum(count.values())
        running = {"running": min(workers, left)} if workers else {}
        lines = count | running | {"waiting": left - running.get("running", 0)}
        return "\n".join(f"{state:<12}{number}" for state, number in lines.items())

    def speed() -> str:
        """Estimated from done subjects alone, since failures may be quick."""
        seconds, ended = time.monotonic() - start, sum(count.values())
        said = f"{ended} of {total} finished in {duration_text(seconds)}"
        if count["done"] < FEWEST_FOR_SPEED:
            return said
        left = (total - ended) * seconds / count["done"]
        rate = 3600 * count["done"] / seconds
        return f"{said}; {rate:.0f} per hour, {duration_text(left)} left"

    with (
        Live(
            console=console,
            get_renderable=lambda: f"{states()}\n{speed()}",
            refresh_per_second=2,
            transient=True,
        )
        if console.is_terminal
        else nullcontext()
    ):

        def on_end(name: str, reason: str | None) -> None:
            count["done" if reason is None else "failed"] += 1
            ended = sum(count.values())
            if reason is not None:
                console.print(
                    f"failed  {name}: {reason}", markup=False, highlight=False, soft_wrap=True
                )
            if not console.is_terminal and ended * 10 // total > (ended - 1) * 10 // total:
                print(speed(), file=sys.stderr)

        yield on_end


def duration_text(seconds: float) -> str:
    """For example 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def findings_as_text(result: "Segmentation") -> str:
    """The results of a segmentation, one per line."""
    from leuko.io.provenance import is_useless
    from leuko.lesions.location import RULES
    from leuko.model.calibration import interval_text
    from leuko.preprocessing.registration import FAR_MM

    analysis = result.analysis
    lines = {}
    volume = f"{result.volume_ml:.2f} mL in {counted(len(analysis.lesions), 'lesion')}"
    judgement = result.judgement
    if judgement is not None and judgement.volume_interval_ml is not None:
        volume += f" (90 % interval {interval_text(judgement.volume_interval_ml)})"
    if analysis.intracranial_ml:
        part = 100 * result.volume_ml / analysis.intracranial_ml
        volume += f", {part:.3g} % of {analysis.intracranial_ml:.0f} mL intracranial"
    volume += "; do not use" * is_useless(result.findings)  # the log says why
    counts_rims = result.convention == "include"
    lines["WMH + rims" if counts_rims else "WMH volume"] = volume
    if result.rims_ml is not None:
        lines["rims"] = f"{result.rims_ml:.2f} mL of caps and rims, {_beside_rims(result)}"
    if judgement is not None and judgement.dice_interval is not None:
        low, high = judgement.dice_interval
        lines["quality"] = f"expected Dice {judgement.predicted_dice:.2f} ({low:.2f} to {high:.2f})"
    if result.outside is not None and result.outside.lesions:
        lesions = counted(result.outside.lesions, "lesion")
        removed = f"{lesions} ({result.maps.mask.ml(result.outside.voxels):.2f} mL)"
        lines["outside"] = f"{removed} outside the brain were removed"
    if result.excluded is not None:
        lines["excluded"] = (
            f"{result.excluded.wmh_ml:.2f} mL of WMH, in an exclusion mask of "
            f"{result.excluded.volume_ml:.2f} mL"
        )
    if analysis.regions is not None:
        found = analysis.regions
        lines["regions"] = found.as_text()
        lines["rule"] = f"{found.rule}, {RULES[found.rule]}"
    lines |= result.extras.as_lines()
    if result.alignment is not None:
        moved_mm, off_mm = result.alignment.moved_mm, result.alignment.off_mm
        if moved_mm:
            lines["alignment"] = f"T1 moved by {moved_mm:.1f} mm"
        else:
            shift = f"{off_mm:.1f} mm" if off_mm < FAR_MM else f"above {FAR_MM:.0f} mm"
            lines["alignment"] = f"T1 not moved, residual shift {shift}"
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def _beside_rims(result: "Segmentation") -> str:
    """Where caps and rims lie, and the volume of WMH without or with them."""
    from leuko.io.provenance import RIMS_LIE

    if result.convention == "include":
        return f"{result.wmh_ml:.2f} mL of WMH without them"
    together = result.wmh_and_rims_ml
    where = RIMS_LIE[result.convention]
    return where if together is None else f"{where}; WMH and rims together {together:.2f} mL"


def changes_as_text(result: "Comparison") -> str:
    """The results of a comparison, one per line."""
    from leuko.longitudinal.changes import WHY_STABLE

    changes, course, visits = result.changes, result.course, result.visits
    alone = ", ".join(f"{visit.record.volume_ml:.2f}" for visit in visits)
    lines = {}
    if len(visits) == 2:
        lines["baseline"] = f"{changes.baseline_ml:.2f} mL"
        lines["follow-up"] = f"{changes.followup_ml:.2f} mL"
        lines["change"] = _change_text(changes)
        by_state = changes.change_by_state
        for state, count in changes.counts.items():
            lines[state] = f"{counted(count, 'lesion')}, {by_state[state]:+.2f} mL"
            if state == "stable" and count:
                lines[state] += f" ({WHY_STABLE})"
        lines |= {e: counted(count, "lesion") for e, count in changes.event_counts.items() if count}
        moved = "between the scans before registration"
    else:
        lines[visits[0].title] = f"{course.ml[0]:.2f} mL"
        for visit, ml, since in zip(visits[1:], course.ml[1:], course.intervals, strict=True):
            found = {**since.counts, **since.event_counts}
            found.pop("stable")
            words = [f"{count} {what}" for what, count in found.items() if count]
            lesions = ", ".join(words) or "no lesion changed"
            lines[visit.title] = f"{ml:.2f} mL, {_change_text(since)}; {lesions}"
        lines["all visits"] = _change_text(changes)
        moved = "at most between scans before registration"
    lines["each scan"] = (
        f"{alone} mL as segmented; the volumes above are measured in the common space, where all "
        "scans show the brain"
    )
    lines["alignment"] = f"{result.midspace.moved_mm:.1f} mm {moved}"
    width = max(12, 2 + max(map(len, lines)))
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())


def _change_text(changes: "Changes") -> str:
    percent = changes.change_percent
    change = f"{changes.change_ml:+.2f} mL"
    change += "" if math.isnan(percent) else f" ({percent:+.1f} %)"
    side = "beyond" if changes.is_beyond_floor else "below"
    return f"{change}, {side} the noise floor of {changes.floor_ml:.2f} mL"


def measures_as_text(row: Mapping[str, float]) -> str:
    from leuko.evaluation.metrics import MEASURES

    lines = [
        f"{m.name:<24}{with_unit(row[m.key], m.unit):<12}{m.better} is better" for m in MEASURES
    ]
    for side in ("reference", "prediction"):
        lesions = counted(int(row[f"{side}_lesions"]), "lesion")
        lines.append(f"{side:<24}{row[f'{side}_ml']:.2f} mL in {lesions}")
    return "\n".join(lines)


def means_as_text(rows: Mapping[str, Mapping[str, float]], *, prefix: str = "") -> str:
    """The mean of each measure in the rows, with its interval; their keys begin with `prefix`."""
    from leuko.evaluation.evaluate import mean_with_interval
    from leuko.evaluation.metrics import MEASURES

    lines = []
    for shown in MEASURES:
        key = prefix + shown.key
        if all(key in row for row in rows.values()):
            mean, low, high = mean_with_interval([row[key] for row in rows.values()])
            interval = interval_text(low, high)
            lines.append(f"  {shown.name:<24}{with_unit(mean, shown.unit)}  {interval}".rstrip())
    return "\n".join(lines)


def validation_as_text(validation: "Validation") -> str:
    """One line per measure: before, after, change and its interval."""
    from leuko.training.adaptation_report import changes_as_cells

    lines = [f"{'':<28}{'before':>8}{'after':>8}{'change':>9}  95 % interval"]
    for name, (before, after, change, interval) in changes_as_cells(validation):
        lines.append(f"{name:<28}{before:>8}{after:>8}{change:>9}  {interval}")
    return "\n".join(lines)


def table_as_text(rows: Mapping[str, Mapping[str, float]]) -> str:
    from leuko.evaluation.evaluate import COLUMNS

    width = max(len(name) for name in ("subject", *rows))
    lines = ["  ".join([f"{'subject':<{width}}", *COLUMNS])]
    for name, row in rows.items():
        cells = [f"{with_unit(row[column], ''):>{len(column)}}" for column in COLUMNS]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def sites_as_text(table: Mapping[str, Mapping[str, float]]) -> str:
    """The table of the challenge: one line per site, and one for all scans."""
    heads = {
        "dsc": "DSC", "h95_mm": "H95, mm", "avd_percent": "AVD, %", "lesion_recall": "recall",
        "lesion_f1": "F1",
    }  # fmt: skip
    width = max(len(site) for site in table)
    lines = [f"{'site':<{width}}  scans" + "".join(f"{head:>9}" for head in heads.values())]
    for site, row in table.items():
        values = (f"{with_unit(row[key], ''):>9}" for key in heads)
        lines.append(f"{site:<{width}}  {row['scans']:>5.0f}{''.join(values)}")
    return "\n".join(lines)


def ranks_as_text(ranks: Mapping[str, float]) -> str:
    """The table of teams, best first."""
    width = max(len(team) for team in ("team", *ranks))
    lines = [f"{team:<{width}}  {rank:.3f}" for team, rank in ranks.items()]
    return "\n".join([f"{'team':<{width}}  rank", *lines])


def with_unit(value: float, unit: str) -> str:
    """A number with its unit; undefined measures as n/a."""
    if math.isnan(value):
        return "n/a"
    return f"{value:.3g} {unit}".rstrip() if abs(value) < 1000 else f"{value:.0f} {unit}".rstrip()


def interval_text(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"95 % interval {low:.3g} to {high:.3g}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
