"""Calibrates a model: temperature, interval of the volume, expected Dice.

    python experiments/calibrate.py HEADS MODEL --rows FILE --real DATA
        --left-out MAPS=SOURCE[,SOURCE] ...
        [--labelmaps FOLDER] [--scans 16] [--write] [--plot docs/reliability.png]

HEADS and --labelmaps: as for synthetic_validation.py. Each held-out head is made into --scans
synthetic scans of random geometry and contrast, each labelmap into two; MODEL segments them.
DATA/SOURCE_PERSON[_TIME] holds FLAIR, T1 and lesions_pathological or lesions (.nii.gz); a folder
without lesions is a healthy person. MAPS is the folder of a model that was trained like MODEL but
without the named sources: it segments their scans. Its probabilities are kept there, as SCAN.npz
(on axes that run R, A, S: float16 wmh and rim, uint8 tissue); a folder with such files alone is
enough.

Each scan leaves a row in FILE. A second run resumes, and repeats the rows whose weights or limits
changed. Voxels found in a synthetic cap or rim count as true, because a broad cap looks like WMH.
Intervals are fitted to real scans and heads; labelmaps are a test only. Prints the calibration and
how well it holds on scans left out. --write puts it into the card of MODEL, without the numbers
that fail on scans left out.

On one core: 5 seconds for a synthetic scan, 5 to 20 for a real one; 2 minutes more at 1 mm if the
probabilities are not stored yet.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import base_data
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from reliability import reliability_figure
from synthetic_validation import held_out, patients

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.provenance import Stopwatch
from leuko.io.tissue import Tissue
from leuko.lesions.delineation import seen
from leuko.lesions.drawing import draw
from leuko.model import runtime, weights
from leuko.model.calibration import DROP_ML, Calibration, DiceLine, Seen, judge
from leuko.model.card import ModelCard, load_card, save_card
from leuko.model.conformal import conformal_width, likeness, median_line
from leuko.model.predict import Prediction, predict_pair
from leuko.model.runtime import Model
from leuko.preprocessing.registration import align
from leuko.preprocessing.slices import Pair
from leuko.synthesis.anatomy import Anatomy
from leuko.synthesis.images import synthesise
from leuko.synthesis.sampling import choose
from leuko.volume import Array, Volume

Row = dict[str, Any]
Figures = dict[str, float]
EDGES = np.arange(-6.0, 12.01, 0.5)  # of log odds
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
LEAST = 0.003  # probabilities below it are not kept
LEAST_SPACING_MM = 2.0  # of synthetic scans: thin slices cost minutes
LABELMAP_SCANS = 2
PARTS = 5  # tissues without rim and WMH, of kept probabilities
# A synthetic scan counts as this part of a real person, at most.
SYNTHETIC_WEIGHT = 0.5
# What looks alike: log volume, spread and contrast that differ by less than about so much.
LIKE = np.array([1.0, 0.3, 0.1])
LEAST_ML = 2.0  # volumes that the bar of the interval is set for
# What a number must reach to stand in the card. Widths of the Dice are those of the card, as
# sources left out leave few to measure them; the first calibration had 0.57.
LEAST_WITHIN, MOST_FACTOR, LEAST_RANKED, WIDEST_DICE = 0.85, 4.0, 0.6, 0.3
SOURCES, PEOPLE = "sources left out", "people left out"
FITTED = "none: real scans that it was fitted to"


@dataclass(frozen=True)
class Job:
    """A scan to measure, and whose probabilities it is measured with."""

    name: str
    source: str  # heads, labelmaps, or the hospital or study of a real scan
    person: str
    predictor: str  # the weights' hash, or the folder of a model without this source
    scans: Callable[[], dict[str, Volume]]  # FLAIR, wmh, T1 or none
    shares: Callable[[Volume, Volume | None], Array]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--left-out", nargs="+", required=True)
    parser.add_argument("--labelmaps", type=Path)
    parser.add_argument("--scans", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    folder = weights.find(options.model)
    model = runtime.load(folder)
    jobs = list(synthetic("heads", list(held_out(options.heads)), options.scans, model))
    if options.labelmaps:
        brains = list(patients(options.labelmaps))
        jobs += synthetic("labelmaps", brains, LABELMAP_SCANS, model)
    for pair in options.left_out:
        maps, _, sources = pair.partition("=")
        jobs += real(options.real, Path(maps), sources.split(","), model.card)
    rows = measured(jobs, model.card, options.rows)
    fitted = [row for row in rows if row["source"] != "labelmaps"]
    found = calibration(fitted)
    show_temperature(rows, found.temperature)
    show_signals(fitted)
    show_people(fitted, found)
    show_intervals(found)
    figures = show_tests(rows, found)
    if options.plot:
        kinds = {"synthetic": synthetic_of(fitted), "real, left out": real_of(fitted)}
        bins = {name: reliability(some) for name, some in kinds.items()}
        signs = {name: points(some) for name, some in kinds.items()}
        reliability_figure(bins, signs, found).savefig(options.plot, dpi=110)
    found = with_good_numbers(found, figures)
    print(json.dumps(asdict(found), indent=2))
    if options.write:
        save_card(folder, replace(load_card(folder), calibration=found))


def synthetic(source: str, anatomies: Sequence[Anatomy], scans: int, model: Model) -> Iterator[Job]:
    def make(number: int, scan: int) -> dict[str, Volume]:
        seed = [91, number, scan]
        rng = np.random.default_rng(seed)
        choice = choose(anatomies[number], rng, every_mm=0)
        while choice.spacing_mm < LEAST_SPACING_MM:
            choice = choose(anatomies[number], rng, every_mm=0)
        own = source == "labelmaps"
        made = synthesise(anatomies[number], seed, choice=choice, size=(208, 224), own_lesions=own)
        return made.volumes()

    def predicted(flair: Volume, t1: Volume | None) -> Array:
        return predict_pair(Pair.of(flair, t1, model.card.preparation), model, Stopwatch())

    for scan in range(scans):
        for number, anatomy in enumerate(anatomies):
            yield Job(
                f"{source}/{anatomy.name}/{scan}",
                source,
                anatomy.name,
                model.card.weights_sha256[:12],
                partial(make, number, scan),
                predicted,
            )


def real(folder: Path, maps: Path, sources: Sequence[str], card: ModelCard) -> Iterator[Job]:
    """The scans of sources that the model of `maps` was trained without."""
    for item in base_data.scans(folder):
        if item.origin.source not in sources:
            continue
        yield Job(
            item.name,
            item.origin.source,
            item.origin.person,
            maps.name,
            partial(read, item.files["flair"].parent),
            partial(kept_shares, maps, item.name, card),
        )


def read(home: Path) -> dict[str, Volume]:
    """The scans of a folder, the T1 on the FLAIR; without lesions where none are labelled."""
    flair = nifti.read(home / "FLAIR.nii.gz").canonical()
    paths = {key: home / f"{key}.nii.gz" for key in ("T1", "lesions", "lesions_pathological")}
    t1, every, pathological = (
        nifti.read(path).canonical() if path.exists() else None for path in paths.values()
    )
    truth = pathological or every
    found = np.zeros(flair.data.shape, dtype=bool) if truth is None else truth.data > 0.5
    scans = {"FLAIR": flair, "wmh": flair.with_data(found)}
    return scans if t1 is None else scans | {"T1": align(flair, t1, threads=1).apply(t1)}


def kept_shares(maps: Path, name: str, card: ModelCard, flair: Volume, t1: Volume | None) -> Array:
    """Probabilities (C, X, Y, Z) as they are kept: those of WMH and rims, and the tissue."""
    path = maps / f"{name}.npz"
    if not path.exists():
        model = runtime.load(maps)
        shares = predict_pair(Pair.of(flair, t1, card.preparation), model, Stopwatch())
        halves = [np.where(p < LEAST, 0, p).astype(np.float16) for p in shares[:-3:-1]]
        tissue = np.argmax(shares[:PARTS], axis=0).astype(np.uint8)
        np.savez_compressed(path, wmh=halves[0], rim=halves[1], tissue=tissue)
    kept = np.load(path)
    wmh, rim = (kept[key].astype(np.float32) for key in ("wmh", "rim"))
    tissues = kept["tissue"] == np.arange(PARTS)[:, None, None, None]
    return np.concatenate([tissues * (1 - wmh - rim), rim[None], wmh[None]])


def measured(jobs: Iterable[Job], card: ModelCard, path: Path) -> list[Row]:
    """A row for each scan; those in the file stay, unless weights or limits were others."""
    lines = path.read_text().splitlines() if path.exists() else []
    known = {(row["name"], row["predictor"]): row for row in map(json.loads, lines)}
    limits = asdict(card.limits())
    rows = []
    for job in jobs:
        row = known.get((job.name, job.predictor))
        if row is None or row["limits"] != limits:
            row = measure(job, card) | {"limits": limits}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{job.name}  {row['found_ml']:.1f} of {row['true_ml']:.1f} mL", flush=True)
        rows.append(row)
    return rows


def measure(job: Job, card: ModelCard) -> Row:
    """A row: what is seen of a scan as `leuko segment` sees it, and what is true."""
    scans = job.scans()
    flair, truth = scans["FLAIR"], scans["wmh"].data > 0
    prediction = Prediction.of(job.shares(flair, scans.get("T1")), flair, card)
    pair = Pair.of(flair, scans.get("T1"), card.preparation)
    drawing = draw(prediction, pair, card)
    drawn, mask = drawing.anywhere, drawing.masks.mask
    if "tissue" in scans:  # broad caps and bands look alike: only the synthesis knows which it drew
        truth |= mask & (scans["tissue"].data == Tissue.RIM)
    p = drawn.probability
    likely = p >= LEAST
    odds = scipy.special.logit(np.clip(p[likely].astype(float), 1e-5, 1 - 1e-5))
    return {
        "name": job.name,
        "source": job.source,
        "person": job.person,
        "predictor": job.predictor,
        "spacing_mm": max(flair.spacing_mm),
        **asdict(seen(prediction.wmh, drawn, mask, flair, card)),
        "true_ml": flair.ml(truth),
        "dice": dice(prediction=mask, reference=truth) if mask.any() else math.nan,
        "counts": np.histogram(odds, EDGES)[0].tolist(),
        "positives": np.histogram(odds[truth[likely]], EDGES)[0].tolist(),
    }


def calibration(rows: list[Row]) -> Calibration:
    """Fitted to all rows. Raises ValueError where they are too few."""
    real, told = real_of(rows), scan_weights(rows)
    people = len({row["person"] for row in real})
    signs, errors = log_errors(rows)
    volume_width = conformal_width(errors / [sign.volume_scale for sign in signs], told)
    return Calibration(
        temperature=round(fitted_temperature(rows, told), 3),
        volume_width=rounded_up(volume_width),
        dice=dice_line(rows, told),
        measured_on=f"{len(real)} real scans of {people} people, each by a model trained without "
        f"their source, and {len(synthetic_of(rows))} synthetic scans",
    )


def dice_line(rows: list[Row], told: Array) -> DiceLine:
    """Each person, and each synthetic head, lies as far off as from a line without them."""
    known = np.array([not math.isnan(row["dice"]) for row in rows])
    x = np.array([sign_of(row).spread for row in rows])[known]
    y = np.array([row["dice"] for row in rows])[known]
    scale = np.array([sign_of(row).dice_scale for row in rows])[known]
    people = np.array([row["person"] for row in rows])[known]
    told = told[known]
    scores = np.empty(len(x))
    for person in set(people):
        own = people == person
        at_zero, slope = median_line(x[~own], y[~own], told[~own])
        scores[own] = abs(y[own] - at_zero - slope * x[own]) / scale[own]
    at_zero, slope = median_line(x, y, told)
    width = rounded_up(conformal_width(scores, told))
    return DiceLine(round(at_zero, 4), round(slope, 4), width)


def rounded_up(width: float) -> float:
    return math.ceil(1e4 * width) / 1e4


def scan_weights(rows: list[Row]) -> Array:
    """1 for all scans of a real person together; less for a synthetic scan, the less the less it
    looks like real ones."""
    people = [row["person"] for row in rows]
    told = np.array([1 / people.count(person) for person in people])
    is_drawn = np.array([is_synthetic(row) for row in rows])
    looks = np.array([looks_of(row) for row in rows])
    alike = likeness(looks[is_drawn], looks[~is_drawn], told[~is_drawn], widths=LIKE)
    told[is_drawn] = SYNTHETIC_WEIGHT * alike
    return told


def looks_of(row: Row) -> tuple[float, float, float]:
    sign = sign_of(row)
    return math.log(sign.found_ml + DROP_ML), sign.spread, sign.contrast


def sign_of(row: Row) -> Seen:
    return Seen(**{field.name: row[field.name] for field in fields(Seen)})


def log_errors(rows: list[Row]) -> tuple[list[Seen], Array]:
    """What is seen, and |ln((true + 0.1) / (found + 0.1))|."""
    signs = [sign_of(row) for row in rows]
    found = np.array([sign.found_ml for sign in signs]) + DROP_ML
    true = np.array([row["true_ml"] for row in rows]) + DROP_ML
    return signs, np.abs(np.log(true / found))


def is_synthetic(row: Row) -> bool:
    return row["source"] in ("heads", "labelmaps")


def real_of(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not is_synthetic(row)]


def synthetic_of(rows: list[Row]) -> list[Row]:
    return [row for row in rows if is_synthetic(row)]


def fitted_temperature(rows: list[Row], told: Array) -> float:
    """The temperature of the greatest likelihood."""
    best = scipy.optimize.minimize_scalar(
        lambda log_t: log_loss(rows, told, math.exp(log_t)), bounds=(-1, 3)
    )
    return math.exp(best.x)


def log_loss(rows: list[Row], told: Array, temperature: float) -> float:
    """Weighted mean of the scans' mean negative log-likelihood of a voxel, nats."""
    counts, positives = (np.array([row[k] for row in rows]) for k in ("counts", "positives"))
    warm = CENTRES / temperature
    losses = counts @ np.logaddexp(0, warm) - positives @ warm
    return float(np.average(losses / np.maximum(counts.sum(axis=1), 1), weights=told))


def show_temperature(rows: list[Row], temperature: float) -> None:
    """By source, and how often probabilities of three kinds are right."""
    kinds = {"0.1 to 0.3": (-2.2, -0.85), "0.3 to 0.7": (-0.85, 0.85), "0.7 to 0.9": (0.85, 2.2)}
    print(f"\nTemperature {temperature:.2f}, of all scans weighted. Best by source, and the")
    print("part of voxels that is lesion where the probability, as it is, lies between:\n")
    print("| source | scans | best temperature |", " | ".join(kinds), "| above 0.9 |")
    print("|---" * (len(kinds) + 4) + "|")
    for source in sources_of(rows):
        own = [row for row in rows if row["source"] == source]
        _, _, counts = reliability(own)
        positives = np.sum([row["positives"] for row in own], axis=0)
        parts = []
        for low, high in (*kinds.values(), (2.2, np.inf)):
            inside = (low <= CENTRES) & (high > CENTRES)
            parts.append(f"{positives[inside].sum() / max(1, counts[inside].sum()):.2f}")
        best = fitted_temperature(own, np.ones(len(own)))
        print("|", " | ".join([source, str(len(own)), f"{best:.2f}", *parts]), "|")


def show_signals(rows: list[Row]) -> None:
    """Spearman's correlation of what is seen with the error of the log volume and with Dice."""
    print("\n| what is seen | volume's error, real | synthetic | Dice, real | synthetic |")
    print("|---|---|---|---|---|")
    signals: dict[str, Callable[[Row], float]] = {
        "volume": lambda row: sign_of(row).found_ml,
        "spread of thresholds": lambda row: sign_of(row).spread,
        "contrast of lesions": lambda row: sign_of(row).contrast,
        "slice spacing": lambda row: float(row["spacing_mm"]),
    }
    for name, signal in signals.items():
        cells = []
        for target in (lambda some: log_errors(some)[1], lambda some: [r["dice"] for r in some]):
            for kind in (real_of(rows), synthetic_of(rows)):
                some = [row for row in kind if not math.isnan(row["dice"])]
                rank = scipy.stats.spearmanr([signal(row) for row in some], target(some)).statistic
                cells.append(f"{rank:+.2f}")
        print("|", " | ".join([name, *cells]), "|")


def show_intervals(found: Calibration) -> None:
    """Of typical lesions, and of faint ones where thresholds matter."""
    print("\n| found, mL | contrast 1.4, spread 0.6 | contrast 1.2, spread 1.2 |")
    print("|---|---|---|")
    for found_ml in (0.0, 0.5, 2.0, 6.0, 20.0, 60.0):
        cells = []
        for contrast, spread in ((1.4, 0.6), (1.2, 1.2)):
            liberal_ml = math.exp(spread) * (found_ml + DROP_ML) - DROP_ML
            seen = Seen(found_ml, found_ml, liberal_ml, contrast)
            low, high = judge(found, seen).volume_interval_ml or (math.nan, math.nan)
            cells.append(f"{low:.1f} to {high:.1f}")
        print("|", " | ".join([f"{found_ml:g}", *cells]), "|")


def show_people(rows: list[Row], found: Calibration) -> None:
    print("\n| real scan, left out | found, mL | 90 % interval | true | expected Dice | true |")
    print("|---|---|---|---|---|---|")
    for row in real_of(rows):
        judged = judge(found, sign_of(row))
        low, high = judged.volume_interval_ml or (math.nan, math.nan)
        told = " | " if judged.dice_interval is None else dice_text(judged.predicted_dice, row)
        cells = [row["name"], f"{row['found_ml']:.1f}", f"{low:.1f} to {high:.1f}"]
        print("|", " | ".join([*cells, f"{row['true_ml']:.1f}", told]), "|")


def dice_text(predicted: float | None, row: Row) -> str:
    return f"{predicted:.2f} | {row['dice']:.2f}"


def show_tests(rows: list[Row], found: Calibration) -> dict[str, Figures]:
    """Scans that took no part in the calibration that judges them."""
    print(f"\nScans of {LEAST_ML:g} mL found and more, judged by a calibration without them:\n")
    heads = (
        "left out", "scans", "people", "volume within (90 % interval)", "high by low, median",
        "Dice within", "its width, median", "rank correlation of Dice",
    )  # fmt: skip
    print("|", " | ".join(heads), "|\n" + "|---" * len(heads) + "|")
    fitted = [row for row in rows if row["source"] != "labelmaps"]
    real, drawn = real_of(fitted), synthetic_of(fitted)
    judged = {
        SOURCES: left_out(real, drawn, "source"),
        PEOPLE: left_out(real, drawn, "person"),
        "synthetic heads left out": left_out(drawn, real, "person"),
        FITTED: [(row, found) for row in real],
        "labelmaps": [(row, found) for row in rows if row["source"] == "labelmaps"],
    }
    return {name: tested(name, pairs) for name, pairs in judged.items() if pairs}


def left_out(rows: list[Row], others: list[Row], key: str) -> list[tuple[Row, Calibration]]:
    """Each row, with the calibration of the others and of rows that differ in `key`."""
    found = {
        value: calibration([row for row in rows if row[key] != value] + others)
        for value in sorted({row[key] for row in rows})
    }
    return [(row, found[row[key]]) for row in rows]


def tested(name: str, pairs: list[tuple[Row, Calibration]]) -> Figures:
    hits, factors, dice_hits, widths, predicted, dices = ([] for _ in range(6))
    large = [(row, by) for row, by in pairs if row["found_ml"] >= LEAST_ML]
    for row, by in large:
        judged = judge(by, sign_of(row))
        assert judged.volume_interval_ml is not None
        assert judged.dice_interval is not None
        assert judged.predicted_dice is not None
        low, high = judged.volume_interval_ml
        hits.append(low <= row["true_ml"] <= high)
        factors.append(high / max(low, 1e-9))
        low, high = judged.dice_interval
        dice_hits.append(low <= row["dice"] <= high)
        widths.append(high - low)
        predicted.append(judged.predicted_dice)
        dices.append(row["dice"])
    figures = {
        "within": float(np.mean(hits)),
        "factor": float(np.median(factors)),
        "dice_within": float(np.mean(dice_hits)),
        "dice_width": float(np.median(widths)),
        "ranked": float(scipy.stats.spearmanr(predicted, dices).statistic),
    }
    people = len({row["person"] for row, _ in large})
    least, most = scipy.stats.binomtest(sum(hits), len(hits)).proportion_ci(0.9)
    cells = [
        f"{sum(hits)} of {len(hits)} ({least:.0%} to {most:.0%})", f"{figures['factor']:.1f}",
        f"{sum(dice_hits)} of {len(hits)}", f"{figures['dice_width']:.2f}",
        f"{figures['ranked']:.2f}",
    ]  # fmt: skip
    print("|", " | ".join([name, str(len(hits)), str(people), *cells]), "|")
    return figures


def with_good_numbers(found: Calibration, figures: dict[str, Figures]) -> Calibration:
    """Without the numbers that miss their bar."""
    apart, own = figures[SOURCES], figures[FITTED]
    good_volume = (
        min(apart["within"], figures[PEOPLE]["within"]) >= LEAST_WITHIN
        and own["factor"] <= MOST_FACTOR
    )
    good_dice = (
        apart["dice_within"] >= LEAST_WITHIN
        and apart["ranked"] >= LEAST_RANKED
        and own["dice_width"] <= WIDEST_DICE
    )
    return replace(
        found,
        volume_width=found.volume_width if good_volume else None,
        dice=found.dice if good_dice else None,
    )


def sources_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["source"] for row in rows))


def points(rows: list[Row]) -> Array:
    """Volume scale, log ratio of true to found volume, spread and Dice of each scan."""
    signs, _ = log_errors(rows)
    ratios = [math.log((r["true_ml"] + DROP_ML) / (r["found_ml"] + DROP_ML)) for r in rows]
    return np.array(
        [
            (sign.volume_scale, ratio, sign.spread, row["dice"])
            for sign, ratio, row in zip(signs, ratios, rows, strict=True)
        ]
    )


def reliability(rows: list[Row]) -> tuple[Array, Array, Array]:
    """Log odds, the part of voxels that are lesion, and how many voxels there are, by bin."""
    counts = np.sum([row["counts"] for row in rows], axis=0)
    positives = np.sum([row["positives"] for row in rows], axis=0)
    return CENTRES, positives / np.maximum(counts, 1), counts


if __name__ == "__main__":
    main()
