"""Makes the bundled model from a trained run: 8 bits, calibrated on synthetic slices, and its card.

    python experiments/bundle.py HEADS RUN OUT [--threshold T] [--smallest MM3]

HEADS are the label maps and RUN is the run of `leuko train --recipe base`; RUN may also be the name
or the folder of a model in 8 bits, to be exported anew from its weights as they are. It prints how
far the 8 bits are from the float network on synthetic slices that neither was calibrated on. The
result belongs into src/leuko/data/models/leuko-base.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from base_data import HELD_OUT
from safetensors.torch import save_file

from leuko.evaluation.metrics import dice
from leuko.model import runtime
from leuko.model.card import WEIGHTS_FILE, load_card, save_card
from leuko.model.onnx_export import export, read_network
from leuko.model.weights import DEFAULT, find
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.anatomy import load_head
from leuko.synthesis.images import synthesise
from leuko.volume import Array

SEEN = ("head01", "head05", "head09", "head16")  # in training: enough to calibrate on
LICENCE = "Apache-2.0"  # of the bundled model
CALIBRATION, CHECK = 24, 8  # synthetic scans


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--smallest", type=float)
    options = parser.parse_args()
    run = find(options.run)
    card = load_card(run)
    with TemporaryDirectory() as folder:
        if card.weights != WEIGHTS_FILE:
            state = read_network(run, card).state_dict()
            run, card = Path(folder), replace(card, weights=WEIGHTS_FILE)
            save_file(state, run / WEIGHTS_FILE)
            save_card(run, card)
        export(run, options.out, scans(options.heads, SEEN, 101, CALIBRATION))
        threshold = options.threshold or card.threshold
        smallest = options.smallest or card.smallest_lesion_mm3
        card = replace(
            load_card(options.out),
            name=DEFAULT,
            licence=LICENCE,
            threshold=threshold,
            smallest_lesion_mm3=smallest,
        )
        save_card(options.out, card)
        slices = scans(options.heads, HELD_OUT, 102, CHECK)
        masks = [
            runtime.load(model).predict(slices)[:, -1] >= threshold for model in (options.out, run)
        ]
    print(f"WMH Dice of 8 bits and float: {dice(prediction=masks[0], reference=masks[1]):.4f}")


def scans(heads: Path, names: tuple[str, ...], seed: int, count: int) -> Array:
    """Slices of `count` synthetic scans of some heads."""
    anatomies = [load_head(heads / f"{name}.nii.gz") for name in names]
    made = [synthesise(anatomies[k % len(anatomies)], [seed, k]) for k in range(count)]
    return np.concatenate([scan.slices(Preparation())[0] for scan in made])


if __name__ == "__main__":
    main()
