"""What a model's probabilities and volumes are worth: its temperature, intervals, expected Dice.

    python runs/calibrate.py HEADS MODEL --rows FILE [--labelmaps FOLDER] [--real FOLDER]
        [--scans 16] [--write] [--plot docs/reliability.png]

HEADS and --labelmaps: as for runs/synthetic_validation.py; each head, held out of training, becomes
--scans whole scans of random geometry and contrast, each labelmap two. --real: folders of FLAIR,
T1 and lesions. Each scan leaves a row in FILE, so that a second run goes on where the first
stopped. Only rows of heads are fitted; the others test. --write puts the calibration into the
model's card.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from synthetic_validation import held_out, patients

from leuko import nifti, runtime, weights
from leuko.anatomy import Anatomy
from leuko.channels import Pair
from leuko.delineate import delineate
from leuko.figures import reliability_figure
from leuko.metrics import dice
from leuko.predict import predict_pair
from leuko.record import Stopwatch
from leuko.runtime import Model
from leuko.synthesis import choose, synthesise
from leuko.uncertainty import DROP_ML, Calibration, Line, judge
from leuko.volume import Array, Volume
from leuko.weights import load_card, save_card

Row = dict[str, Any]
Pairs = Callable[[list[Row]], tuple[Array, Array]]  # what is known and what is to be told
EDGES = np.arange(-40.0, 17.01, 0.5)  # of log odds; float32 has no probability nearer to 1
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
COVERED = 0.9
ROUNDING = 1e-3  # of the lines
LABELMAP_SCANS = 2
JITTERED_SCANS = 6  # of each head, and mirrored: that takes three predictions more
JITTER = {"darker_ml": 0.9, "brighter_ml": 1.1}  # tissue in other grey levels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--labelmaps", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--scans", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    folder = weights.find(options.model)
    model = runtime.load(folder)
    jobs = dict(synthetic("heads", list(held_out(options.heads)), options.scans, own=False))
    if options.labelmaps:
        brains = list(patients(options.labelmaps))
        jobs |= dict(synthetic("labelmaps", brains, LABELMAP_SCANS, own=True))
    if options.real:
        jobs |= dict(real(options.real))
    rows = measured(jobs, model, options.rows)
    heads = [row for row in rows if row["source"] == "heads"]
    temperature = fitted_temperature(heads)
    calibration = fitted(heads, temperature, f"{len(heads)} synthetic scans of held-out heads")
    print(json.dumps(asdict(calibration), indent=2))
    show_temperature(rows, temperature)
    show_intervals(calibration)
    show_tests(rows, calibration)
    show_choices(rows, temperature)
    show_signals(heads, temperature)
    if options.write:
        save_card(folder, replace(load_card(folder), calibration=calibration))
    if options.plot:
        bins = {name: reliability(rows_of(rows, name)) for name in ("heads", "real")}
        volumes = {
            name: [(row["found_ml"], row["true_ml"]) for row in rows_of(rows, name)]
            for name in ("heads", "labelmaps", "real")
        }
        reliability_figure(bins, volumes, calibration).savefig(options.plot, dpi=110)


def synthetic(
    source: str, anatomies: list[Anatomy], scans: int, *, own: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Volume]]]]:
    """Names of scans, and what makes each. Thin slices cost minutes: two in three have thick."""

    def make(number: int, scan: int) -> dict[str, Volume]:
        seed = [91, number, scan]
        rng = np.random.default_rng(seed)
        choice = choose(anatomies[number], rng, every_mm=0)
        while scan % 3 and choice.spacing_mm < 2:
            choice = choose(anatomies[number], rng, every_mm=0)
        made = synthesise(anatomies[number], seed, choice=choice, size=(208, 224), own_lesions=own)
        return made.volumes()

    for scan in range(scans):
        for number, anatomy in enumerate(anatomies):
            yield f"{source}/{anatomy.name}/{scan}", partial(make, number, scan)


def real(folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Volume]]]]:
    def read(home: Path) -> dict[str, Volume]:
        names = {"FLAIR": "FLAIR", "T1": "T1", "wmh": "lesions"}
        scans = {name: nifti.read(home / f"{file}.nii.gz") for name, file in names.items()}
        return scans | {"wmh": scans["wmh"].with_data(scans["wmh"].data > 0.5)}

    for home in sorted(path.parent for path in folder.glob("*/lesions.nii.gz")):
        yield f"real/{home.name}/0", partial(read, home)


def measured(
    jobs: dict[str, Callable[[], dict[str, Volume]]], model: Model, path: Path
) -> list[Row]:
    """A row for each scan, those in the file as they are."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {row["name"]: row for row in map(json.loads, lines)}
    for name, make in jobs.items():
        if name not in rows:
            rows[name] = measure(name, make(), model)
            with path.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
            print(f"{name}  {rows[name]['found_ml']:.1f} of {rows[name]['true_ml']:.1f} mL")
    return [rows[name] for name in jobs]


def measure(name: str, scans: dict[str, Volume], model: Model) -> Row:
    flair, t1 = scans["FLAIR"], scans.get("T1")
    card = model.card
    voxel_ml = flair.voxel_mm3 / 1000
    truth = scans["wmh"].data > 0
    shares = predicted(flair, t1, model)
    drawn = delineate(shares, flair, card)
    p, mask = drawn.probability, drawn.mask
    seen = p > 0
    bins = np.digitize(scipy.special.logit(p[seen].astype(float)), EDGES[1:-1])
    counts, positives, in_mask = (
        np.bincount(bins[chosen], minlength=len(CENTRES)).tolist()
        for chosen in (slice(None), truth[seen], mask[seen])
    )
    row = {
        "name": name,
        "source": name.split("/", maxsplit=1)[0],
        "brain": name.split("/")[1],
        "voxel_ml": voxel_ml,
        "thickest_mm": max(flair.spacing_mm),
        "with_t1": t1 is not None,
        "true_ml": flair.ml(truth),
        "found_ml": flair.ml(mask),
        "dice": dice(prediction=mask, reference=truth),
        "counts": counts,
        "positives": positives,
        "in_mask": in_mask,
        "bolder_ml": flair.ml(delineate(shares, flair, card, card.limits().shifted(-1)).mask),
        "timider_ml": flair.ml(delineate(shares, flair, card, card.limits().shifted(1)).mask),
    }
    kind, _, scan = name.split("/")
    if kind == "heads" and int(scan) < JITTERED_SCANS and not flair.is_nearly_isotropic:
        turned = (scan and scan.with_data(scan.data[::-1]) for scan in (flair, t1))
        row["mirrored_ml"] = flair.ml(delineate(predicted(*turned, model), turned[0], card).mask)
        for key, factor in JITTER.items():
            shares = predicted(flair, t1, model, brighter=factor)
            row[key] = flair.ml(delineate(shares, flair, card).mask)
    return row


def predicted(flair: Volume, t1: Volume | None, model: Model, *, brighter: float = 1.0) -> Array:
    preparation = model.card.preparation
    tissue_grey = round(brighter * preparation.tissue_grey)
    pair = Pair.of(flair, t1, replace(preparation, tissue_grey=tissue_grey))
    return predict_pair(pair, model, Stopwatch())


def rows_of(rows: list[Row], source: str) -> list[Row]:
    return [row for row in rows if row["source"] == source]


def fitted_temperature(rows: list[Row], odds: Array = CENTRES) -> float:
    """The temperature of the greatest likelihood."""
    best = scipy.optimize.minimize_scalar(lambda t: log_loss(rows, np.exp(t), odds), bounds=(-1, 3))
    return float(np.exp(best.x))


def log_loss(rows: list[Row], temperature: float, odds: Array = CENTRES) -> float:
    """Mean negative log-likelihood of a voxel, nats; every scan counts alike."""
    counts, positives = (np.array([row[k] for row in rows]) for k in ("counts", "positives"))
    warm = odds / temperature
    losses = counts @ np.logaddexp(0, warm) - positives @ warm
    return float((losses / counts.sum(axis=1)).mean())


def fitted(
    rows: list[Row], temperature: float, measured_on: str, *, moved: bool = True
) -> Calibration:
    def dices(some: list[Row]) -> tuple[Array, Array]:
        return soft_dices(some, temperature)

    volume_low, volume_high = band(rows, log_volumes, moved=moved)
    dice_low, dice_high = band(rows, dices, moved=moved)
    return Calibration(
        temperature=round(temperature, 3),
        volume_low=volume_low,
        volume_high=volume_high,
        dice=quantile_line(*dices(rows), 0.5),
        dice_low=dice_low,
        dice_high=dice_high,
        measured_on=measured_on,
    )


def band(rows: list[Row], pairs: Pairs, *, moved: bool = True) -> tuple[Line, Line]:
    """Lines that hold nine in ten values, of a brain that the lines have not seen.

    Those of the 5 % and 95 % quantiles, moved apart by what lines of the other brains lack
    (conformalised quantile regression, Romano et al. 2019), unless they are not to be `moved`.
    """
    low, high = quantile_lines(*pairs(rows))
    if not moved:
        return low, high
    lacks = np.concatenate(
        [beyond(*pairs(own), *quantile_lines(*pairs(others))) for own, others in left_out(rows)]
    )
    level = min(1.0, COVERED * (1 + 1 / len(lacks)))
    margin = max(0.0, float(np.quantile(lacks, level, method="higher")))
    return (round(low[0] - margin, 4), low[1]), (round(high[0] + margin, 4), high[1])


def left_out(rows: list[Row]) -> Iterator[tuple[list[Row], list[Row]]]:
    """The rows of each brain, and those of the others."""
    for brain in sorted({row["brain"] for row in rows}):
        yield (
            [row for row in rows if row["brain"] == brain],
            [row for row in rows if row["brain"] != brain],
        )


def log_volumes(rows: list[Row]) -> tuple[Array, Array]:
    """ln(found + 0.1), and ln((true + 0.1) / (found + 0.1))."""
    found, true = (np.array([row[f"{k}_ml"] for row in rows]) + DROP_ML for k in ("found", "true"))
    return np.log(found), np.log(true / found)


def soft_dices(rows: list[Row], temperature: float) -> tuple[Array, Array]:
    """The soft Dice of scans in which something was found, and the Dice."""
    some = [row for row in rows if sum(row["in_mask"])]
    return soft_dice(some, temperature), np.array([row["dice"] for row in some])


def soft_dice(rows: list[Row], temperature: float) -> Array:
    """The Dice to expect, by calibrated probabilities; 0 where nothing was found."""
    p = 1 / (1 + np.exp(-CENTRES / temperature))
    within, count, everywhere = (
        np.array([values @ np.array(row[key]) for row in rows])
        for values, key in ((p, "in_mask"), (np.ones_like(p), "in_mask"), (p, "counts"))
    )
    return 2 * within / (count + everywhere)


def quantile_lines(x: Array, y: Array) -> tuple[Line, Line]:
    tail = (1 - COVERED) / 2
    return quantile_line(x, y, tail), quantile_line(x, y, 1 - tail)


def quantile_line(x: Array, y: Array, quantile: float) -> Line:
    """Koenker and Bassett 1978: the line of least pinball loss, as a linear programme."""
    n = len(x)
    cost = np.concatenate([np.zeros(2), np.full(n, quantile), np.full(n, 1 - quantile)])
    design = np.column_stack([np.ones(n), x, np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    best = scipy.optimize.linprog(cost, A_eq=design, b_eq=y, bounds=bounds).x
    return round(float(best[0]), 4), round(float(best[1]), 4)


def beyond(x: Array, y: Array, low: Line, high: Line) -> Array:
    """How far values lie outside of a band; negative inside."""
    return np.maximum(low[0] + low[1] * x - y, y - high[0] - high[1] * x)


def inside(x: Array, y: Array, low: Line, high: Line) -> Array:
    return beyond(x, y, low, high) <= ROUNDING


def show_tests(rows: list[Row], calibration: Calibration) -> None:
    """Coverage of the 90 % intervals: heads by what the other heads tell, others by all heads."""
    print("\n| scans | volume within | Dice within | true by found volume, median |")
    print("|---|---|---|---|")
    heads = rows_of(rows, "heads")
    for name, moved in (
        ("heads, by lines of the others, not moved apart", False),
        ("heads, each by the others", True),
    ):
        told = [
            (own, fitted(others, fitted_temperature(others), "", moved=moved))
            for own, others in left_out(heads)
        ]
        show(name, told)
    for source in ("labelmaps", "real"):
        if own := rows_of(rows, source):
            show(source, [(own, calibration)])


def show(name: str, told: list[tuple[list[Row], Calibration]]) -> None:
    """A row of the table, of rows and the calibration that is to hold for them."""
    volume_hits, dice_hits = (
        np.concatenate(hits)
        for hits in zip(
            *(
                (
                    inside(*log_volumes(own), by.volume_low, by.volume_high),
                    inside(*soft_dices(own, by.temperature), by.dice_low, by.dice_high),
                )
                for own, by in told
            ),
            strict=True,
        )
    )
    rows = [row for own, _ in told for row in own]
    ratio = np.median(np.exp(log_volumes(rows)[1]))
    print(
        f"| {name}, {len(rows)} | {volume_hits.sum()} of {len(volume_hits)} | "
        f"{dice_hits.sum()} of {len(dice_hits)} | {ratio:.2f} |"
    )


def show_intervals(calibration: Calibration) -> None:
    print("\n| found, mL | 90 % interval, mL |")
    print("|---|---|")
    for found_ml in (0, 0.5, 2, 6, 20, 60):
        mask = np.arange(10_000) < 100 * found_ml
        low, high = judge(calibration, mask, mask, voxel_ml=0.01).volume_interval_ml
        print(f"| {found_ml} | {low:.1f} to {high:.1f} |")


def show_temperature(rows: list[Row], temperature: float) -> None:
    """Negative log-likelihood of a voxel, in thousandths of a nat: as it is, and calibrated."""
    print("\n| scans | log loss as it is | calibrated | best temperature | loss with it |")
    print("|---|---|---|---|---|")
    clipped = np.clip(CENTRES, *scipy.special.logit([1e-6, 1 - 1e-6]))
    for source, name, odds in (
        ("heads", "heads", CENTRES),
        ("heads", "heads, probabilities clipped at 1e-6", clipped),
        ("labelmaps", "labelmaps", CENTRES),
        ("real", "real", CENTRES),
    ):
        if own := rows_of(rows, source):
            best = fitted_temperature(own, odds)
            losses = [f"{1000 * log_loss(own, t, odds):.1f}" for t in (1.0, temperature, best)]
            cells = [f"{name}, {len(own)}", *losses[:2], f"{best:.2f}", losses[2]]
            print("|", " | ".join(cells), "|")


def show_choices(rows: list[Row], temperature: float) -> None:
    """What the lines of the volume may run over: pinball losses, less being better."""
    print("\n| lines of the volume over | heads, each by the others | labelmaps | real |")
    print("|---|---|---|---|")
    choices: dict[str, Callable[[list[Row]], Array]] = {
        "nothing: one factor for all": lambda some: np.zeros(len(some)),
        "ln(found + 0.1)": lambda some: log_volumes(some)[0],
        "soft Dice": lambda some: soft_dice(some, temperature),
        "spread from the bolder to the timider threshold": lambda some: spread(
            some, "bolder_ml", "timider_ml"
        ),
    }
    heads = rows_of(rows, "heads")
    for name, feature in choices.items():
        losses = [
            np.concatenate([pinball(feature, *pair) for pair in left_out(heads)]),
            *(
                pinball(feature, own, heads)
                for source in ("labelmaps", "real")
                if (own := rows_of(rows, source))
            ),
        ]
        print("|", " | ".join([name, *(f"{loss.mean():.3f}" for loss in losses)]), "|")


def pinball(feature: Callable[[list[Row]], Array], own: list[Row], others: list[Row]) -> Array:
    """The losses of both lines, fitted to others, on one's own rows."""
    x, error = feature(own), log_volumes(own)[1]
    low, high = quantile_lines(feature(others), log_volumes(others)[1])
    tail = (1 - COVERED) / 2
    below, above = error - low[0] - low[1] * x, error - high[0] - high[1] * x
    return sum(
        np.maximum(quantile * off, (quantile - 1) * off)
        for off, quantile in ((below, tail), (above, 1 - tail))
    )


def spread(rows: list[Row], first: str, second: str) -> Array:
    """How far two volumes of a scan are apart, as a logarithm; nan where one was not measured."""
    pairs = np.array([[row.get(k, np.nan) for k in (first, second)] for row in rows])
    return abs(np.log((pairs[:, 0] + DROP_ML) / (pairs[:, 1] + DROP_ML)))


def show_signals(rows: list[Row], temperature: float) -> None:
    """Spearman's correlation of what costs little with the size of the volume's error."""
    print("\n| signal | scans | correlation with abs log volume error | with Dice |")
    print("|---|---|---|---|")
    logs, errors = log_volumes(rows)
    signals = {
        "volume found": logs,
        "spread from the bolder to the timider threshold": spread(rows, "bolder_ml", "timider_ml"),
        "spread from mirrored scans": spread(rows, "mirrored_ml", "found_ml"),
        "spread from darker to brighter scans": spread(rows, "darker_ml", "brighter_ml"),
        "soft Dice": soft_dice(rows, temperature),
    }
    dices = np.array([row["dice"] for row in rows])
    for name, signal in signals.items():
        known = ~np.isnan(signal) & ~np.isnan(dices)
        with_error, with_dice = (
            scipy.stats.spearmanr(signal[known], target[known]).statistic
            for target in (abs(errors), dices)
        )
        print(f"| {name} | {known.sum()} | {with_error:+.2f} | {with_dice:+.2f} |")


def reliability(rows: list[Row]) -> tuple[Array, Array, Array]:
    """Log odds, the part of voxels that are lesion, and how many voxels there are, by bin."""
    counts = np.sum([row["counts"] for row in rows], axis=0)
    positives = np.sum([row["positives"] for row in rows], axis=0)
    return CENTRES, positives / np.maximum(counts, 1), counts


if __name__ == "__main__":
    main()
