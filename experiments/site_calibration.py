"""Does calibrating grey levels and threshold on a site's unlabelled scans help?

    python experiments/site_calibration.py DATA [--real FOLDER] [--site NAME ...]
        [--model leuko-base]

DATA is the output of scanners.py: each scanner is a site. Some slices of its training subjects
choose a gain and an exponent for FLAIR and T1 from a grid, by criteria that use no labels, and the
threshold with the greatest expected Dice. Sites without training subjects, `original` and those of
--real (folders of FLAIR, T1 and lesions, named <site>_<subject>), choose by the scans that they are
measured on. All scans are segmented across one axis, in slices at least 6 mm apart.

Prints the mean Dice of the test subjects with its 95 % interval, and its difference from the
unchanged model, at the card's threshold and at the chosen one. The last rows are the upper limit:
the choice by the labels of the same slices.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import scipy.special
from scanners import ORIGINAL, SCANNERS, subjects
from tables import interval

from leuko.evaluation.metrics import dice
from leuko.io import nifti
from leuko.io.files import find_image
from leuko.io.tissue import Tissue
from leuko.lesions.components import drop_small
from leuko.model import runtime, weights
from leuko.model.calibration import calibrated
from leuko.model.runtime import Model
from leuko.preprocessing.slices import Pair, area_residue
from leuko.volume import Array

APART_MM = 6.0
LOOKED_AT, OF_ONE = 30, 3  # slices that choose: of a site, and at most of one subject
MIDDLE = (0.38, 0.68)  # where they lie in the stack
FEW = 30  # pixels, from which no grey value is told
THRESHOLDS = scipy.special.expit(np.arange(-7.0, 3.1, 0.5))


@dataclass(frozen=True)
class Greys:
    """What becomes of 8-bit grey values: the tissue's becomes the gain times itself."""

    exponent: float = 1.0
    gain: float = 1.0  # 0: the image is left out

    def table(self, tissue_grey: int) -> Array:
        moved = self.gain * tissue_grey * (np.arange(256) / tissue_grey) ** self.exponent
        return np.asarray(np.rint(moved.clip(0, 255)).astype(np.uint8))

    def __str__(self) -> str:
        return f"{self.gain:g} x^{self.exponent:g}" if self.gain else "left out"


Point = tuple[Greys, Greys]  # of FLAIR and T1
AS_IT_IS: Point = (Greys(), Greys())
EXPONENTS, GAINS = (0.45, 0.67, 1.0, 1.5, 2.2), (0.8, 1.0, 1.25)
T1_GREYS = (
    Greys(),
    Greys(exponent=0.5),
    Greys(exponent=2),
    Greys(gain=1.25),
    Greys(gain=0),
)
GRID: tuple[Point, ...] = tuple(
    (Greys(exponent, gain), t1) for exponent, gain, t1 in product(EXPONENTS, GAINS, T1_GREYS)
)


@dataclass(frozen=True, eq=False)
class Case:
    """Slices (N, H, W) of one subject: grey values of the model's pixels, uint8, and lesions."""

    flair: Array
    t1: Array
    truth: Array
    voxel_mm3: float

    def at(self, chosen: Array) -> "Case":
        return replace(self, flair=self.flair[chosen], t1=self.t1[chosen], truth=self.truth[chosen])

    def greys(self, point: Point, model: Model) -> "Case":
        """The same in other grey values."""
        flair, t1 = (greys.table(model.card.preparation.tissue_grey) for greys in point)
        return replace(self, flair=flair[self.flair], t1=t1[self.t1])

    def predicted(self, model: Model) -> Array:
        """Probabilities (N, C, H, W), float16."""
        residue = area_residue(self.flair, round(model.card.preparation.opening_mm2))
        return model.predict(np.stack([residue, self.flair, self.t1], axis=-1)).astype(np.float16)


@dataclass(frozen=True, eq=False)
class Look:
    """What the model makes of the slices that choose at one point of the grid, subject by subject.

    `entropy`: its mean, nats, over what is brain to the model as it is. `features` (subjects, 6):
    log ratios of CSF and grey to white matter, and the log of white, of FLAIR and of T1.
    """

    lesion: list[Array]
    entropy: float
    features: Array


Looks = Mapping[Point, Look]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--site", nargs="+")
    parser.add_argument("--model", default=weights.DEFAULT)
    options = parser.parse_args()
    model = runtime.load(weights.find(options.model))
    usual = look(
        few_slices([read(home, model) for home in subjects(options.data / ORIGINAL.name / "test")]),
        (AS_IT_IS,),
        model,
    )[AS_IT_IS].features
    print(
        "| site | chosen by | FLAIR | T1 | distance | Dice | gained | threshold | Dice | gained |"
    )
    print("|---" * 10 + "|")
    for name, (training, test) in sites(options.data, options.real).items():
        if options.site is None or name in options.site:
            report(
                name,
                few_slices([read(home, model) for home in training]),
                [read(home, model) for home in test],
                usual,
                model,
            )


def sites(data: Path, real: Path | None) -> dict[str, tuple[list[Path], list[Path]]]:
    """The folders of the subjects that choose and of those that are measured, by site."""
    found = {}
    for name in (ORIGINAL.name, *(scanner.name for scanner in SCANNERS)):
        test = list(subjects(data / name / "test"))
        training = data / name / "train"
        found[name] = (list(subjects(training)) if training.is_dir() else test), test
    for home in sorted(path.parent for path in real.glob("*/lesions.nii.gz")) if real else ():
        own = found.setdefault(home.name.split("_")[0], ([], []))
        for part in own:
            part.append(home)
    return found


def read(home: Path, model: Model) -> Case:
    """The slices of one subject that stand far enough apart."""
    flair, t1 = (nifti.read(home / f"{name}.nii.gz") for name in ("FLAIR", "T1"))
    labels = find_image(home, "wmh") or find_image(home, "lesions")
    if labels is None:
        raise SystemExit(f"{home} has neither wmh nor lesions; one of them is needed")
    slices, placement = Pair.of(flair, t1, model.card.preparation).slices(2)
    truth = placement.slices((nifti.read(labels).canonical().data > 0.5).astype(np.float32)) >= 0.5
    spacing_mm = flair.canonical().spacing_mm[2]
    stride = max(1, round(APART_MM / spacing_mm))
    voxel_mm3 = placement.pixel_mm[0] * placement.pixel_mm[1] * spacing_mm * stride
    return Case(slices[::stride, ..., 1], slices[::stride, ..., 2], truth[::stride], voxel_mm3)


def few_slices(cases: Sequence[Case]) -> list[Case]:
    """The slices that choose: some of the middle of each subject."""
    number = min(OF_ONE, -(-LOOKED_AT // len(cases)))
    low, high = MIDDLE
    return [
        case.at(np.unique(np.linspace(low * count, high * count, number).astype(int)))
        for case in cases
        for count in [len(case.flair)]
    ]


def look(cases: Sequence[Case], grid: Sequence[Point], model: Model) -> dict[Point, Look]:
    brains = [case.predicted(model).argmax(axis=1) != Tissue.BACKGROUND for case in cases]
    looks = {}
    for point in grid:
        moved = [case.greys(point, model) for case in cases]
        shares = [case.predicted(model) for case in moved]
        looks[point] = Look(
            lesion=[p[:, -1] for p in shares],
            entropy=float(
                np.mean([mean_entropy(p, brain) for p, brain in zip(shares, brains, strict=True)])
            ),
            features=np.array([features(*pair) for pair in zip(moved, shares, strict=True)]),
        )
    return looks


def mean_entropy(shares: Array, brain: Array) -> float:
    each: Array = scipy.special.entr(shares.astype(np.float32)).sum(axis=1)
    return float(each[brain].mean())


def features(case: Case, shares: Array) -> Array:
    """Those of `Look`, of one subject; nan where a class has too few pixels, or no grey value."""
    labels = shares.argmax(axis=1)
    values = []
    for image in (case.flair, case.t1):
        fluid, grey, white = (
            np.median(image[inside]) if inside.sum() >= FEW else np.nan
            for inside in (
                np.isin(labels, (Tissue.CSF, Tissue.VENTRICLE)),
                labels == Tissue.GREY,
                labels == Tissue.WHITE,
            )
        )
        greys = np.array([fluid, grey, white]) + 1  # black is a grey value too
        values += [greys[0] / greys[2], greys[1] / greys[2], greys[2]]
    features = np.log(values)
    return np.where(np.repeat([case.flair.any(), case.t1.any()], 3), features, np.nan)


def choices(
    looks: Looks, cases: Sequence[Case], usual: Array, model: Model
) -> Iterator[tuple[str, Point, float]]:
    """By which criterion, the point that it chooses, and the threshold that goes with it."""
    points = list(looks)
    assert model.card.calibration is not None
    temperature = model.card.calibration.temperature
    scores = {
        "least entropy": lambda point: -looks[point].entropy,
        "agreement of neighbours": lambda point: agreement(point, looks),
        "usual tissue greys": lambda point: -strangeness(looks[point].features, usual),
    }
    yield "as it is", AS_IT_IS, expected_threshold(looks[AS_IT_IS], temperature)
    for name, score in scores.items():
        point = max(points, key=score)
        yield name, point, expected_threshold(looks[point], temperature)
    # What each image's part in the last of them is worth.
    for part, own in (("FLAIR", (point[0], Greys())), ("T1", (Greys(), point[1]))):
        yield f"{name}, of {part} alone", own, expected_threshold(looks[own], temperature)
    truths = [case.truth for case in cases]

    def with_labels(point: Point, threshold: float) -> float:
        return mean_dice(looks[point].lesion, truths, threshold)

    best = max(points, key=lambda point: with_labels(point, model.card.threshold))
    for name, point in (("labels, threshold alone", AS_IT_IS), ("labels", best)):
        yield name, point, max(THRESHOLDS, key=partial(with_labels, point))


def agreement(point: Point, looks: Looks) -> float:
    """Mean overlap of the lesions found here and one step of the FLAIR's gain or exponent away."""
    steps = [
        abs(EXPONENTS.index(point[0].exponent) - EXPONENTS.index(other[0].exponent))
        + abs(GAINS.index(point[0].gain) - GAINS.index(other[0].gain))
        if point[1] == other[1]
        else 0
        for other in looks
    ]
    near = [other for other, step in zip(looks, steps, strict=True) if step == 1]
    return float(np.mean([overlap(looks[point].lesion, looks[other].lesion) for other in near]))


def overlap(first: Sequence[Array], second: Sequence[Array]) -> float:
    """The soft Dice of two sets of probabilities, all subjects together."""
    shared = summed = 0.0
    for p, q in zip(first, second, strict=True):
        shared += float(np.minimum(p, q).sum(dtype=np.float64))
        summed += float(p.sum(dtype=np.float64) + q.sum(dtype=np.float64))
    return 2 * shared / max(summed, 1e-9)


def strangeness(features: Array, usual: Array) -> float:
    """Mean squared distance of a site's mean features from the usual, in standard deviations.

    Each subject's own distance is least where all contrast is gone: the means are compared.
    """
    known = ~np.isnan(features).all(axis=0)
    own = np.nanmean(features[:, known], axis=0)
    mean, spread = np.nanmean(usual[:, known], axis=0), np.nanstd(usual[:, known], axis=0)
    return float((((own - mean) / spread) ** 2).mean())


def expected_threshold(own: Look, temperature: float) -> float:
    """The threshold of the greatest Dice to expect by calibrated probabilities, mean of subjects"""
    warm = [calibrated(p, temperature) for p in own.lesion]

    def expected(threshold: float) -> float:
        masks = [p >= threshold for p in own.lesion]
        return float(
            np.mean(
                [
                    2 * w[m].sum(dtype=np.float64) / (m.sum() + w.sum(dtype=np.float64))
                    for w, m in zip(warm, masks, strict=True)
                ]
            )
        )

    return float(max(THRESHOLDS, key=expected))


def mean_dice(lesions: Sequence[Array], truths: Sequence[Array], threshold: float) -> float:
    """Mean Dice of subjects, of those that have a lesion or where one was found."""
    pairs = zip(lesions, truths, strict=True)
    return float(np.nanmean([dice(prediction=p >= threshold, reference=t) for p, t in pairs]))


def report(
    site: str, few: Sequence[Case], test: Sequence[Case], usual: Array, model: Model
) -> None:
    """The rows of one site; `distance` is that of its tissue greys from the usual."""
    looks = look(few, GRID, model)
    found: dict[Point, list[Array]] = {}
    before: list[float] = []
    for name, point, threshold in choices(looks, few, usual, model):
        if point not in found:
            found[point] = [case.greys(point, model).predicted(model)[:, -1] for case in test]
        columns = []
        for limit in (model.card.threshold, threshold):
            dices = [scored(*pair, limit, model) for pair in zip(test, found[point], strict=True)]
            before = before or dices
            gained = [now - then for now, then in zip(dices, before, strict=True)]
            columns.append([interval(dices, 2), interval(gained, 2)])
        unusual = f"{strangeness(looks[point].features, usual):.1f}"
        cells = [
            site,
            name,
            *map(str, point),
            unusual,
            *columns[0],
            f"{threshold:.2f}",
            *columns[1],
        ]
        print("|", " | ".join(cells), "|", flush=True)


def scored(case: Case, probability: Array, threshold: float, model: Model) -> float:
    smallest_mm3 = model.card.smallest_lesion_mm3
    found = probability >= threshold
    mask = drop_small(found, voxel_mm3=case.voxel_mm3, smallest_mm3=smallest_mm3)
    return dice(prediction=mask, reference=case.truth)


if __name__ == "__main__":
    main()
