"""What a model's probabilities and volumes are worth: its temperature, intervals, expected Dice.

    python runs/calibrate.py HEADS MODEL --rows FILE [--labelmaps FOLDER] [--real FOLDER]
        [--scans 20] [--write] [--plot docs/reliability.png]

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
from leuko.figures import reliability_figure
from leuko.metrics import dice
from leuko.predict import predict_pair, shifted, to_mask
from leuko.record import Stopwatch
from leuko.runtime import Model
from leuko.synthesis import choose, synthesise
from leuko.uncertainty import DROP_ML, Calibration
from leuko.volume import Array, Volume
from leuko.weights import load_card, save_card

Row = dict[str, Any]
EDGES = np.arange(-14.0, 14.01, 0.5)  # of log odds
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
COVERED = 0.9
LABELMAP_SCANS = 2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--labelmaps", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--scans", type=int, default=20)
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
    show_tests(rows, calibration)
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

    for home in sorted(path for path in folder.iterdir() if path.is_dir()):
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
    to_lesions = partial(to_mask, smallest_mm3=card.smallest_lesion_mm3, voxel_mm3=flair.voxel_mm3)
    p = predicted(flair, t1, model)
    mask = to_lesions(p, card.threshold)
    seen = p > 0
    bins = np.digitize(scipy.special.logit(p[seen].clip(1e-6, 1 - 1e-6)), EDGES[1:-1])
    counts, positives, in_mask = (
        np.bincount(bins[chosen], minlength=len(CENTRES)).tolist()
        for chosen in (slice(None), truth[seen], mask[seen])
    )
    row = {
        "name": name,
        "source": name.split("/", maxsplit=1)[0],
        "brain": name.split("/")[1],
        "voxel_ml": voxel_ml,
        "true_ml": flair.ml(truth),
        "found_ml": flair.ml(mask),
        "dice": dice(prediction=mask, reference=truth),
        "counts": counts,
        "positives": positives,
        "in_mask": in_mask,
        "bolder_ml": flair.ml(to_lesions(p, shifted(card.threshold, -1))),
        "timider_ml": flair.ml(to_lesions(p, shifted(card.threshold, 1))),
    }
    if row["source"] == "heads" and not flair.is_nearly_isotropic:
        turned = (scan and scan.with_data(scan.data[::-1]) for scan in (flair, t1))
        row["mirrored_ml"] = flair.ml(to_lesions(predicted(*turned, model), card.threshold))
    return row


def predicted(flair: Volume, t1: Volume | None, model: Model) -> Array:
    return predict_pair(Pair.of(flair, t1, model.card.preparation), model, Stopwatch())[-1]


def rows_of(rows: list[Row], source: str) -> list[Row]:
    return [row for row in rows if row["source"] == source]


def fitted_temperature(rows: list[Row]) -> float:
    """The temperature of the greatest likelihood; every scan counts alike."""
    shares = np.array([np.array(row["counts"]) / sum(row["counts"]) for row in rows])
    positive = np.array([np.array(row["positives"]) / sum(row["counts"]) for row in rows])

    def loss(log_t: float) -> float:
        odds = CENTRES / np.exp(log_t)
        return float((shares * np.logaddexp(0, odds) - positive * odds).sum())

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-1, 3)).x))


def fitted(rows: list[Row], temperature: float, measured_on: str) -> Calibration:
    logs, errors = log_volumes(rows)
    soft, dices = soft_dices(rows, temperature)
    tail = (1 - COVERED) / 2
    return Calibration(
        temperature=round(temperature, 3),
        volume_low=quantile_line(logs, errors, tail),
        volume_high=quantile_line(logs, errors, 1 - tail),
        dice=quantile_line(soft, dices, 0.5),
        dice_low=quantile_line(soft, dices, tail),
        dice_high=quantile_line(soft, dices, 1 - tail),
        measured_on=measured_on,
    )


def log_volumes(rows: list[Row]) -> tuple[Array, Array]:
    """ln(found + 0.1), and ln((true + 0.1) / (found + 0.1))."""
    found, true = (np.array([row[f"{k}_ml"] for row in rows]) + DROP_ML for k in ("found", "true"))
    return np.log(found), np.log(true / found)


def soft_dices(rows: list[Row], temperature: float) -> tuple[Array, Array]:
    """The soft Dice of scans in which something was found, and the Dice."""
    p = 1 / (1 + np.exp(-CENTRES / temperature))
    some = [row for row in rows if sum(row["in_mask"]) and not np.isnan(row["dice"])]
    soft = [
        2 * (p @ row["in_mask"]) / (sum(row["in_mask"]) + p @ np.array(row["counts"]))
        for row in some
    ]
    return np.array(soft), np.array([row["dice"] for row in some])


def quantile_line(x: Array, y: Array, quantile: float) -> tuple[float, float]:
    """Koenker and Bassett 1978: the line of least pinball loss, as a linear programme."""
    n = len(x)
    cost = np.concatenate([np.zeros(2), np.full(n, quantile), np.full(n, 1 - quantile)])
    design = np.column_stack([np.ones(n), x, np.eye(n), -np.eye(n)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * n)
    best = scipy.optimize.linprog(cost, A_eq=design, b_eq=y, bounds=bounds).x
    return round(float(best[0]), 4), round(float(best[1]), 4)


def inside(x: Array, y: Array, low: tuple[float, float], high: tuple[float, float]) -> Array:
    return (y >= low[0] + low[1] * x - 1e-9) & (y <= high[0] + high[1] * x + 1e-9)


def show_tests(rows: list[Row], calibration: Calibration) -> None:
    """Coverage of the 90 % intervals: heads by what the other heads tell, others by all heads."""
    print("| scans | brains | volume within | Dice within | volume found by true, median |")
    print("|---|---|---|---|---|")
    heads = rows_of(rows, "heads")
    volume_hits, dice_hits = [], []
    for brain in sorted({row["brain"] for row in heads}):
        others = [row for row in heads if row["brain"] != brain]
        own = [row for row in heads if row["brain"] == brain]
        told = fitted(others, fitted_temperature(others), "")
        volume_hits.extend(inside(*log_volumes(own), told.volume_low, told.volume_high))
        soft = soft_dices(own, told.temperature)
        dice_hits.extend(inside(*soft, told.dice_low, told.dice_high))
    show("heads, each by the others", heads, volume_hits, dice_hits)
    for source in ("labelmaps", "real"):
        if own := rows_of(rows, source):
            volume_hits = inside(*log_volumes(own), calibration.volume_low, calibration.volume_high)
            soft = soft_dices(own, calibration.temperature)
            show(
                source, own, volume_hits, inside(*soft, calibration.dice_low, calibration.dice_high)
            )


def show(name: str, rows: list[Row], volume_hits: Array, dice_hits: Array) -> None:
    brains = len({row["brain"] for row in rows})
    ratio = np.median(np.exp(-log_volumes(rows)[1]))
    print(
        f"| {name}, {len(rows)} | {brains} | {np.sum(volume_hits)} of {len(volume_hits)} | "
        f"{np.sum(dice_hits)} of {len(dice_hits)} | {ratio:.2f} |"
    )


def show_signals(rows: list[Row], temperature: float) -> None:
    """Spearman's correlation of what costs little with the size of the volume's error."""
    print("\n| signal | scans | correlation with abs log volume error | with Dice |")
    print("|---|---|---|---|")
    logs, errors = log_volumes(rows)

    def spread(first: str, second: str) -> Array:
        return np.array(
            [
                abs(np.log((row[first] + DROP_ML) / (row[second] + DROP_ML)))
                if first in row
                else np.nan
                for row in rows
            ]
        )

    p = 1 / (1 + np.exp(-CENTRES / temperature))
    soft = [
        2 * (p @ row["in_mask"]) / max(sum(row["in_mask"]) + p @ np.array(row["counts"]), 1e-9)
        for row in rows
    ]
    signals = {
        "volume found": logs,
        "spread from the bolder to the timider threshold": spread("bolder_ml", "timider_ml"),
        "spread from mirrored scans": spread("mirrored_ml", "found_ml"),
        "soft Dice": np.array(soft),
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
