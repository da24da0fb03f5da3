"""Cross-validation: measure each subject with a model trained without it, then train on all.

During the training, the run folder contains a run for each fold. At the end it contains the model
trained on all subjects, and the mask of each subject from the model trained without it. If the run
started from another model, it also contains the masks of that model and a report that compares
both.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leuko.errors import LeukoError
from leuko.evaluation.evaluate import Row, from_json, json_ready
from leuko.evaluation.labels import LABEL_VALUES
from leuko.evaluation.metrics import MEASURES, dice
from leuko.io import nifti
from leuko.io.files import read_json, staged, write_json
from leuko.io.tissue import Tissue
from leuko.model import runtime
from leuko.preprocessing.slices import HEAD_PART_OF_TISSUE, tissue_level
from leuko.report.pictures import Example
from leuko.synthesis.images import synthesise
from leuko.training import holdout, loop, plan, processes
from leuko.training.adaptation import Validation
from leuko.training.adaptation_report import as_html, as_markdown, examples
from leuko.training.dataset import person
from leuko.training.holdout import MASKS
from leuko.training.loop import Progress
from leuko.training.plan import RUN_FILE, Plan
from leuko.training.settings import Settings
from leuko.volume import Array

FOLDER = "folds"
MASKS_BEFORE = "masks-before"
RESULT_FILE = "cross-validation.json"
PAGE_FILE, TEXT_FILE = "report.html", "report.md"
SYNTHETIC_SCANS = 12
SYNTHETIC_SEED = 1_000_003  # not used by any training
MARGIN = 4  # pixels around a head


def fit(
    run: Path,
    *,
    on_step: Callable[[Progress], None] = lambda _: None,
    doing: Callable[[str], None] = lambda _: None,
) -> Validation | None:
    """Train the folds of a run that `plan.start` made, then the run itself; resumes if interrupted.

    `doing` is called with the name of each activity other than steps. If several processes share
    the training, only the first returns a result. Raises LeukoError as `loop.fit` does.
    """
    processes.wait_for(run / RUN_FILE)
    if (run / RESULT_FILE).is_file():
        raise LeukoError(f"{run} is finished; its results are in {run / RESULT_FILE}")
    planned = plan.read(run)
    processes.require_shareable(planned.settings.recipe)
    folds = split([s.name for s in planned.trained], planned.settings)
    homes = [run / FOLDER / str(number) for number in range(1, len(folds) + 1)]
    before = _before(run, planned, doing) if processes.is_first() else {}
    rows: dict[str, Row] = {}
    for number, (home, names) in enumerate(zip(homes, folds, strict=True)):
        if processes.is_first() and not (home / RUN_FILE).is_file():
            plan.start_fold(home, planned, names)
        rows |= _fit(home, _overall(on_step, number, len(folds) + 1), doing)
    _fit(run, _overall(on_step, len(folds), len(folds) + 1), doing)
    if not processes.is_first():
        return None
    validation = Validation(
        model=run.resolve().name,
        origin=planned.card.training["from"]["name"] if planned.origin else "",
        folds=folds,
        after={name: rows[name] for name in sorted(rows)},
        before=before,
        synthetic=_synthetic(run, planned, doing),
        doubts=holdout.doubts(run / MASKS_BEFORE),
    )
    unfinished = shutil.ignore_patterns(".*")
    for home in homes:
        shutil.copytree(home / MASKS, run / MASKS, dirs_exist_ok=True, ignore=unfinished)
    with staged(run) as scratch:
        write_json(scratch / RESULT_FILE, _as_record(validation))
        if validation.before:
            about = _about(planned)
            masks = (run / MASKS_BEFORE, run / MASKS)
            pictures = [_example(validation, n, planned, masks) for n in examples(validation)]
            page = as_html(validation, pictures, about)
            texts = {PAGE_FILE: page, TEXT_FILE: as_markdown(validation, about)}
            for name, text in texts.items():
                (scratch / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    shutil.rmtree(run / FOLDER)
    return validation


def split(names: Sequence[str], settings: Settings) -> list[list[str]]:
    """The names in `settings.folds` parts of about equal size, fewer if there are fewer people.

    Scans of one person, `sub-01/ses-1` and `sub-01/ses-2`, stay together.
    """
    everyone = sorted({person(name) for name in names})
    order = np.random.default_rng(settings.seed).permutation(len(everyone))
    count = min(settings.folds, len(everyone))
    parts = [{everyone[k] for k in order[first::count]} for first in range(count)]
    return [sorted(name for name in names if person(name) in part) for part in parts]


def _fit(
    run: Path, on_step: Callable[[Progress], None], doing: Callable[[str], None]
) -> dict[str, Row]:
    """The measures of a run's held-out subjects; trains the run if it is not finished."""
    processes.wait_for(run / RUN_FILE)
    record = read_json(run / RUN_FILE, what="run")
    if not record["finished"]:
        return loop.fit(run, on_step=on_step, doing=doing)
    return {name: from_json(row) for name, row in record["measures"].items()}


def _overall(
    on_step: Callable[[Progress], None], number: int, count: int
) -> Callable[[Progress], None]:
    """A callback that converts the progress of one of `count` trainings to that of all."""

    def tell(at: Progress) -> None:
        on_step(replace(at, step=at.step + number * at.steps, steps=count * at.steps))

    return tell


def _before(run: Path, planned: Plan, doing: Callable[[str], None]) -> dict[str, Row]:
    """The measures of the initial model. Computed first, since they can reveal wrong scans.

    Raises LeukoError if that model is missing or has changed.
    """
    if planned.origin is None:
        return {}
    planned.require_origin()
    origin = _load(planned.origin, planned)
    masks = run / MASKS_BEFORE
    return holdout.measures(planned.trained, origin, masks, check_flair=True, doing=doing)


def _synthetic(
    run: Path, planned: Plan, doing: Callable[[str], None]
) -> Sequence[Sequence[float]] | None:
    """Dice of the initial and the new model on synthetic scans."""
    if planned.origin is None or not planned.settings.recipe.synthetic_images:
        return None
    planned.require_origin()
    doing("measuring synthetic scans")
    return _on_synthetic_scans([_load(f, planned) for f in (planned.origin, run)], planned)


def _load(folder: Path, planned: Plan) -> runtime.Model:
    """Load a model in torch, so that the comparison is not between 8 bits and float32."""
    return runtime.load(folder, device=planned.device, threads=planned.threads, by_torch=True)


def _on_synthetic_scans(models: Sequence[runtime.Model], planned: Plan) -> list[list[float]]:
    """For each model, its Dice on `SYNTHETIC_SCANS` synthetic scans."""
    anatomies = plan.anatomies(planned.settings.heads, torch.device("cpu"))
    found: list[list[float]] = [[] for _ in models]
    for number in range(SYNTHETIC_SCANS):
        anatomy = anatomies[number % len(anatomies)]
        seed = [planned.settings.seed, SYNTHETIC_SEED, number]
        scan = synthesise(anatomy, seed, settings=planned.settings.synthesis)
        slices, classes = scan.slices(planned.settings.preparation)
        for values, model in zip(found, models, strict=True):
            mask = model.predict(slices)[:, -1] >= model.card.threshold
            values.append(dice(prediction=mask, reference=classes == Tissue.WMH))
    return found


def _example(validation: Validation, name: str, planned: Plan, masks: Sequence[Path]) -> Example:
    """The slice of a subject where the masks before and after differ most, cropped to the head."""
    subject = next(s for s in planned.trained if s.name == name)
    labels = nifti.read_labels(subject.labels, values=LABEL_VALUES)
    flair = nifti.read(subject.flair).canonical()
    truth = labels.with_data(labels.data == 1)
    across = flair.through_plane_axis
    found = [nifti.read_mask(holdout.mask_path(folder, name)) for folder in masks]
    stacks = [np.moveaxis(v.canonical().data, across, 0) for v in (flair, truth, *found)]
    differing = (stacks[2] != stacks[3]).sum(axis=(1, 2))
    labelled = stacks[1].sum(axis=(1, 2))
    shown = int(np.lexsort((labelled, differing))[-1])
    head = _head(stacks[0][shown], HEAD_PART_OF_TISSUE * tissue_level(flair))
    image, known, *masked = (stack[shown][head] for stack in stacks)
    right_mm, front_mm = np.delete(flair.spacing_mm, across)
    dices = tuple(rows[name]["dsc"] for rows in (validation.before, validation.after))
    return Example(name, image, known, masked, dices, aspect=float(front_mm / right_mm))


def _head(image: Array, dark: float) -> tuple[slice, ...]:
    """The bounding box of the pixels above `dark`, with a margin."""
    sides = []
    for axis in (0, 1):
        bright = np.flatnonzero((image > dark).any(axis=1 - axis))
        low, high = (bright[0], bright[-1]) if len(bright) else (0, image.shape[axis] - 1)
        sides.append(slice(max(0, low - MARGIN), high + MARGIN + 1))
    return tuple(sides)


def _about(planned: Plan) -> dict[str, str]:
    recipe, card = planned.settings.recipe, planned.card
    return {
        "recipe": f"{recipe.name}, {recipe.steps} steps of {recipe.images_per_step} slices",
        "synthetic slices": f"{recipe.synthetic_part:.0%}",
        "started from": f"{card.training['from']['name']}, SHA-256 "
        f"{card.training['from']['sha256'][:12]}",
        "computed in": "float32, both before and after; the installed leuko-base uses 8 bits",
        "threshold": f"{card.threshold:g}",
        "smallest lesion": f"{card.smallest_lesion_mm3:g} mm³",
        "seed": str(planned.settings.seed),
        "data": planned.settings.data,
    }


def _as_record(validation: Validation) -> dict[str, Any]:
    record: dict[str, Any] = {
        "folds": validation.folds,
        "after": {name: json_ready(row) for name, row in validation.after.items()},
    }
    if validation.before:
        before = {name: json_ready(row) for name, row in validation.before.items()}
        changes = {m.key: json_ready(asdict(validation.change(m.key))) for m in MEASURES}
        record |= {
            "model": validation.model,
            "origin": validation.origin,
            "verdict": validation.verdict,
            "changes": changes,
            "before": before,
            "doubts": dict(validation.doubts),
        }
    if validation.synthetic:
        keys = ("dice_before", "dice_after")
        record["synthetic"] = {
            key: [None if math.isnan(value) else value for value in values]
            for key, values in zip(keys, validation.synthetic, strict=True)
        }
    return record
