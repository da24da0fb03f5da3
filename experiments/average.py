"""Averages the weights of several runs of one network into a run to bundle or to train further.

    python experiments/average.py RUN RUN... OUT

RUN and OUT are folders of `leuko train --recipe base`. Where the runs are stages of one training,
the mean lies between them and is often better than each (model soups, Wortsman et al. 2022).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from leuko.model.card import WEIGHTS_FILE, load_card
from leuko.training.storage import save_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    cards = [load_card(run) for run in options.runs]
    weights = [safetensors.torch.load_file(run / WEIGHTS_FILE) for run in options.runs]
    mean = {
        name: sum((part[name].float() for part in weights), torch.zeros(())) / len(weights)
        for name in weights[0]
    }
    cards.sort(key=lambda card: card.training["steps"])
    every = [card.training for card in cards]
    training = {
        **every[-1],
        "mean_of_steps": [run["steps"] for run in every],
        "data": "; ".join(dict.fromkeys(run["data"] for run in every)),
        "left_out": sorted(set.intersection(*(set(run.get("left_out", ())) for run in every))),
        "scans": sorted({scan for run in every for scan in run.get("scans", ())}),
    }
    save_model(options.out, mean, replace(cards[-1], training=training))


if __name__ == "__main__":
    main()
