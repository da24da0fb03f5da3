"""Gain and forgetting when the bundled model is adapted to a scanner with a few labelled scans.

    python experiments/adaptation.py SCANNERS OUT [--labelled 5 10 15] [--scanner NAME ...]
        [--rate R] [--synthetic PART] [--start-part PART]

SCANNERS is the output of scanners.py. For each scanner the bundled model is adapted on the first
5, 10 and 15 training subjects. Both models are measured on its test subjects, and on fresh subjects
of the original range, whose heads neither has seen. The scanner `original` is a control: it shows
the effect of further training alone. The recipe is ADAPT with the given options replaced; use
another OUT for each recipe. OUT keeps the runs, and finished runs are not repeated. Prints a table
with the Dice before and after, and the changes with their 95 % intervals.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from scanners import FRESH, ORIGINAL, TESTS
from tables import interval

from leuko.evaluation.evaluate import Row, from_json, json_ready
from leuko.io.files import read_json, write_json
from leuko.model import runtime
from leuko.model.card import load_card
from leuko.model.onnx_export import export
from leuko.model.weights import DEFAULT, find
from leuko.training import holdout, loop, plan
from leuko.training.dataset import find_subjects
from leuko.training.recipes import ADAPT, Recipe
from leuko.training.settings import Settings

KEYS = ("dsc", "lesion_f1", "h95_mm")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scanners", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labelled", type=int, nargs="+", default=[5, 10, 15])
    parser.add_argument("--scanner", nargs="+")
    parser.add_argument("--rate", type=float, default=ADAPT.phases[-1].rate_from)
    parser.add_argument("--synthetic", type=float, default=ADAPT.synthetic_part)
    parser.add_argument("--start-part", type=float, default=ADAPT.start_part)
    options = parser.parse_args()
    rise, fall = ADAPT.phases
    recipe = replace(
        ADAPT,
        phases=(replace(rise, rate_to=options.rate), replace(fall, rate_from=options.rate)),
        synthetic_part=options.synthetic,
        start_part=options.start_part,
    )
    names = options.scanner or sorted(
        path.name for path in options.scanners.iterdir() if path.name != ORIGINAL.name
    )
    base = find(DEFAULT)
    fresh = options.scanners / ORIGINAL.name / FRESH
    original = measures(base, fresh, options.out / "base-fresh")
    print(
        "| scanner | labelled | Dice before | Dice after | gain | F1 gain | H95 gain, mm |", end=""
    )
    print(" on the original range | minutes |\n" + "|---" * 9 + "|")
    for name in names:
        test = options.scanners / name / TESTS
        before = measures(base, test, options.out / f"base-{name}")
        for count in options.labelled:
            run = options.out / f"{name}-{count}"
            model = adapted(options.scanners / name / "train", count, run, recipe)
            after = measures(model, test, run / TESTS)
            kept = measures(model, fresh, run / FRESH)
            seconds = read_json(run / plan.RUN_FILE, what="run")["seconds"]["train"]
            cells = [
                name,
                str(count),
                f"{mean(before):.2f}",
                f"{mean(after):.2f}",
                *(gain(before, after, key) for key in KEYS),
                gain(original, kept, "dsc"),
                f"{seconds / 60:.0f}",
            ]
            print("|", " | ".join(cells), "|", flush=True)


def adapted(data: Path, count: int, run: Path, recipe: Recipe) -> Path:
    """The model, in 8 bits, of a run in a folder with the first `count` subjects."""
    base = find(DEFAULT)
    card = load_card(base)
    some = run.with_name(f"{run.name}-data")
    if not (run / plan.RUN_FILE).is_file():
        some.mkdir(parents=True, exist_ok=True)
        for home in sorted(data.iterdir())[:count]:
            if not (some / home.name).exists():
                (some / home.name).symlink_to(home.resolve())
        settings = Settings(
            data=str(some.resolve()),
            recipe=recipe,
            preparation=card.preparation,
            stages=card.stages,
            side_maps=card.side_maps,
            classes=card.classes,
            init=str(base),
            held_out=0.0,
        )
        plan.start(run, settings)
    if not read_json(run / plan.RUN_FILE, what="run")["finished"]:
        loop.fit(run)
    small = run.with_name(f"{run.name}-8-bit")
    if not small.is_dir():
        export(run, small, loop.training_slices(run))
    return small


def measures(model: Path, data: Path, kept: Path) -> Mapping[str, Row]:
    """The measures of a model on labelled subjects, by name; `kept` keeps them with its hash."""
    file, sha256 = kept.with_suffix(".json"), load_card(model).weights_sha256
    if not file.is_file() or read_json(file, what="measures")["model"] != sha256:
        loaded = runtime.load(model)
        found = holdout.measures(find_subjects(data), loaded, kept / sha256[:12])
        rows = {name: json_ready(row) for name, row in found.items()}
        write_json(file, {"model": sha256, "rows": rows})
    rows = read_json(file, what="measures")["rows"]
    return {name: from_json(row) for name, row in rows.items()}


def mean(rows: Mapping[str, Row]) -> float:
    return fmean(row["dsc"] for row in rows.values())


def gain(before: Mapping[str, Row], after: Mapping[str, Row], key: str) -> str:
    """The mean change of a measure, subject by subject, with its 95 % interval."""
    changes = [after[name][key] - before[name][key] for name in before]
    return interval(changes, 1 if key == "h95_mm" else 2, signed=True)


if __name__ == "__main__":
    main()
