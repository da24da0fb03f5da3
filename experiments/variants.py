"""Compares variants of the network and its input, trained in the same way from scratch.

    python experiments/variants.py DATA OUT [--slices 4800] [--width 0.5] [--only NAME ...]

DATA holds `train` and `test`, labelled subjects, as benchmarks/peers.py makes them. Every variant
is trained on the same number of slices and measured on all test subjects at a threshold of 0.5.
The exception is `PUBLISHED`, with the rates and momenta of Xu et al. 2017, which are meant for
weights of ImageNet on grey values. It starts from the stages of `its start`, with their maps
`LARGE` times as large and new other layers; both have a quarter of the width. It is trained for
`PUBLISHED_STEPS` steps in place of 150,000, with one rate for all layers. OUT keeps the runs, and
finished runs are not repeated. Prints a table with the measures of each variant.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from adaptation import KEYS, measures
from safetensors.torch import save_file
from tables import interval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leuko.io.files import read_json, staged
from leuko.model.card import WEIGHTS_FILE, load_card, save_card
from leuko.model.network import SpecialisedVGG, vgg16
from leuko.model.onnx_export import read_network
from leuko.preprocessing.slices import Preparation
from leuko.training import loop, plan, tensorboard_log
from leuko.training.recipes import FROM_NOTHING, MODERN, XU2017
from leuko.training.settings import Settings

PUBLISHED_STEPS, PUBLISHED_WIDTH = 300, 0.25
LARGE = MODERN.feature_scale  # what Leuko divides ImageNet's maps by, to bring them near 1
START, PUBLISHED = "its start", "published rates"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--slices", type=int, default=4800)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    print("| variant | parameters | Dice | lesion F1 | H95, mm | loss, start to end | minutes |")
    print("|---" * 7 + "|")
    for name, settings in variants(options).items():
        if options.only and name not in options.only:
            continue
        run = folder(options.out, name)
        if name == PUBLISHED:
            with_large_maps(folder(options.out, START), Path(settings.init))
        losses = trained(run, settings)
        rows = measures(run, options.data / "test", run / "test")
        card = load_card(run)
        network = SpecialisedVGG(len(card.classes), card.stages, card.side_maps)
        millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
        minutes = read_json(run / plan.RUN_FILE, what="run")["seconds"]["train"] / 60
        cells = [name, f"{millions:.2f} M"]
        cells += [
            interval([row[key] for row in rows.values()], 1 if key == "h95_mm" else 2)
            for key in KEYS
        ]
        cells += [f"{losses[0]:.3g} to {losses[1]:.3g}", f"{minutes:.0f}"]
        print("|", " | ".join(cells), "|", flush=True)


def variants(options: argparse.Namespace) -> dict[str, Settings]:
    """By name: input, stages, maps, another rate, the published rates and what they start from."""
    stages = vgg16(options.width)
    modern = replace(FROM_NOTHING, steps=options.slices // MODERN.images_per_step)
    ours = Settings(
        data=str((options.data / "train").resolve()),
        recipe=modern,
        stages=stages,
        init="none",
        held_out=0.0,
    )
    narrow = replace(ours, stages=vgg16(PUBLISHED_WIDTH))
    published = replace(
        narrow,
        recipe=replace(
            XU2017, steps=PUBLISHED_STEPS, bias_rate=1.0, bias_decay=1.0, fusion_rate=1.0
        ),
        init=str((options.out / "large-maps").resolve()),
    )
    return {
        "colour image": ours,
        "three slices of FLAIR": replace(ours, preparation=Preparation(channels="flair-3-slices")),
        "three slices of T1": replace(ours, preparation=Preparation(channels="t1-3-slices")),
        "four stages": replace(ours, stages=stages[:4]),
        "two maps a stage": replace(ours, side_maps=2),
        "rate of 3e-4": replace(ours, recipe=replace(modern, phases=MODERN.phases)),
        START: narrow,
        PUBLISHED: published,
    }


def folder(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-")


def with_large_maps(start: Path, out: Path) -> None:
    """Write a model with the stages of another, all of whose maps are `LARGE` times as large, and
    new layers on them."""
    if out.is_dir():
        return
    card = load_card(start)
    network = read_network(start, card)
    torch.manual_seed(0)
    network.renew_specialised_layers()
    network.divide_maps(1 / LARGE)
    with staged(out) as scratch:
        save_file(network.state_dict(), scratch / WEIGHTS_FILE)
        save_card(scratch, replace(card, name=out.name, training={}))


def trained(run: Path, settings: Settings) -> tuple[float, float]:
    """Train a run unless it is there; the mean loss of the first and of the last tenth of it."""
    if not (run / plan.RUN_FILE).is_file():
        plan.start(run, settings)
    if not read_json(run / plan.RUN_FILE, what="run")["finished"]:
        loop.fit(run)
    curves = EventAccumulator(str(run / tensorboard_log.FOLDER), size_guidance={"scalars": 0})
    curves.Reload()
    losses = [event.value for event in curves.Scalars("loss")]
    tenth = max(1, len(losses) // 10)
    return fmean(losses[:tenth]), fmean(losses[-tenth:])


if __name__ == "__main__":
    main()
