"""Train the bundled model on synthetic images, on a GPU or a CPU, in slices of a few minutes.

    python runs/train_base.py HEADS RUN [--atlas DIR] [--device cuda] [--minutes 9]

HEADS: whole heads as FreeSurfer label maps. --atlas: lesion masks in MNI space. Run it again with
the same RUN and it goes on from its last checkpoint. The training ends after --steps: the rate is
constant, then falls to zero over the last part. RUN is a model folder all the while: the moving
average of the weights, in half precision. A network may start at half the width, which trains three
times as fast; --width 1 on such a run doubles every map without changing what it computes. --start
takes the weights of another run, or of runs/average.py, and goes on counting from its steps.
"""

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from leuko import losses, nifti
from leuko.anatomy import CLASSES, Anatomy, load_head
from leuko.augment import augment
from leuko.channels import Preparation
from leuko.dataset import Slices
from leuko.files import image_stem, staged
from leuko.network import SIDE_MAPS, VGG16, SpecialisedVGG, vgg16
from leuko.recipes import Augmentation
from leuko.record import versions
from leuko.synthesis import synthesise
from leuko.volume import Array
from leuko.weights import WEIGHTS_FILE, ModelCard, load_card, save_card

LICENCE = "Apache-2.0"
DATA = (
    "synthetic images alone, made from 17 label maps of heads (SynthSeg, Billot et al., "
    "Apache-2.0) and lesion masks of 27 patients (Lesjak et al. 2017, CC BY); no real image"
)
HELD_OUT = ("head04", "head12", "head18")  # never trained on: they validate
SUBJECTS = 24  # in a chunk: the slices that are drawn from for a while
REUSE = 2  # times that a slice of a chunk is drawn, about
BATCH = 8
WARM_STEPS, FALL = 300, 0.35
AVERAGE = 0.999
AUGMENTATION = Augmentation(
    scale=(0.9, 1.15), rotation_degrees=12, flip=True, gain=0.1, gamma=0.15, noise_grey=3
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("heads", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--atlas", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--width", type=float, help="of a new run, 1 by default; or to widen to")
    parser.add_argument("--start", type=Path, help="model folder that a new run starts from")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    end = time.monotonic() + 60 * options.minutes
    device = torch.device(options.device)

    heads, atlas = load_sources(options.heads, options.atlas, device)
    options.run.mkdir(parents=True, exist_ok=True)
    state = load_state(options.run / "checkpoint.pt", options.width, options.start)
    network = build(state["width"]).to(device, memory_format=torch.channels_last)
    average = build(state["width"]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=0.01)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])

    # On a GPU a pool of threads makes the next chunks (area openings run on the CPU) meanwhile.
    pool = ThreadPoolExecutor(max_workers=1 if device.type == "cpu" else 12)
    chunk = state["chunk"]
    ahead = [] if device.type == "cpu" else [submit(pool, heads, atlas, chunk)]
    while state["step"] < options.steps and time.monotonic() < end:
        begun = time.monotonic()
        futures = ahead.pop() if ahead else submit(pool, heads, atlas, chunk)
        parts = [future.result() for future in futures]
        if device.type != "cpu":
            ahead.append(submit(pool, heads, atlas, chunk + 1))
        slices = Slices(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        made = time.monotonic() - begun
        loss = train_chunk(slices, network, average, optimizer, state, options)
        chunk += 1
        state |= {
            "chunk": chunk,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save(state, options.run / "checkpoint.pt")
        save_model(options.run, average, state)
        seconds = time.monotonic() - begun
        line = {
            "chunk": chunk,
            "step": state["step"],
            "slices": state["step"] * BATCH,
            "loss": round(loss, 4),
            "made": len(slices.images),
            "seconds_making": round(made, 1),
            "slices_per_second": round(len(slices.images) * REUSE / seconds, 1),
        }
        print(json.dumps(line), flush=True)
    pool.shutdown(cancel_futures=True)


def load_sources(
    heads: Path, atlas: Path | None, device: torch.device
) -> tuple[list[Anatomy], list[Tensor]]:
    """The heads to train on, and the lesion masks to carry over."""
    return [
        load_head(path).to(device)
        for path in sorted(heads.glob("*.nii.gz"))
        if image_stem(path) not in HELD_OUT
    ], [
        torch.from_numpy(nifti.read_mask(path).canonical().data > 0).to(device)
        for path in (sorted(atlas.glob("*.nii.gz")) if atlas else [])
    ]


def submit(pool: ThreadPoolExecutor, heads: list[Anatomy], atlas: list[Tensor], chunk: int) -> list:
    return [pool.submit(make, heads, atlas, [chunk, subject]) for subject in range(SUBJECTS)]


def make(heads: list[Anatomy], atlas: list[Tensor], seed: list[int]) -> tuple[Array, ...]:
    """The slices of one synthetic subject, their labels, and which are sagittal."""
    head = heads[int(np.random.default_rng([*seed, 1]).integers(len(heads)))]
    scan = synthesise(head, seed, atlas=atlas)
    images, labels = scan.slices(Preparation())
    return images, labels, np.full(len(images), scan.axis == 0)


def train_chunk(
    slices: Slices,
    network: SpecialisedVGG,
    average: SpecialisedVGG,
    optimizer: torch.optim.Optimizer,
    state: dict,
    options: argparse.Namespace,
    objective: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy_dice,
) -> float:
    """The mean loss over one chunk of slices; network, average and state are changed in place."""
    device = next(network.parameters()).device
    rng = np.random.default_rng([state["chunk"], 7])
    generator = torch.Generator(device).manual_seed(state["chunk"])
    lesion = replace(slices, labels=(slices.labels == len(CLASSES) - 1).astype(np.uint8))
    images, labels, sagittal = (
        torch.from_numpy(array) for array in (slices.images, slices.labels, slices.sagittal)
    )
    total, count = 0.0, min(len(images) * REUSE // BATCH, options.steps - state["step"])
    for _ in range(count):
        optimizer.param_groups[0]["lr"] = rate_at(state, options)
        drawn = torch.from_numpy(lesion.draw(BATCH, lesion_part=0.5, rng=rng))
        batch, truth = augment(
            images[drawn].to(device),
            labels[drawn].to(device),
            AUGMENTATION,
            channels="flair-t1-residue",
            sagittal=sagittal[drawn].to(device),
            generator=generator,
        )
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(batch)
        loss = objective(logits.float(), truth)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        done = state["step"] - state["since"]
        weight = min(AVERAGE, (1 + done) / (10 + done))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(now, 1 - weight)
        total += loss.item()
    return total / count


def rate_at(state: dict, options: argparse.Namespace) -> float:
    """The learning rate: a warm start, constant, then a straight fall to zero at the end."""
    steps = options.steps - state["since"]
    warm = (state["step"] - state["since"] + 1) / min(WARM_STEPS, steps / 10)
    left = (options.steps - state["step"]) / (FALL * steps)
    return options.rate * min(1.0, warm, left)


def build(width: float) -> SpecialisedVGG:
    return SpecialisedVGG(len(CLASSES), vgg16(width))


def load_state(path: Path, width: float | None, start: Path | None = None) -> dict:
    if path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True)
    else:
        state = started(start) if start else begun(width or 1.0)
    while width and state["width"] < width:
        state |= both(widened(state["average"]))
        state["width"] *= 2
        state["since"] = state["step"]
        state.pop("optimizer", None)
    return state


def begun(width: float) -> dict:
    torch.manual_seed(0)
    weights = build(width).state_dict()
    return {"width": width, "step": 0, "since": 0, "chunk": 0} | both(weights)


def started(folder: Path) -> dict:
    card = load_card(folder)
    step = card.training["steps"]
    weights = {k: v.float() for k, v in safetensors.torch.load_file(folder / WEIGHTS_FILE).items()}
    counts = {"step": step, "since": step, "chunk": step}  # other images than the runs before it
    return {"width": card.stages[0][0] / VGG16[0][0]} | counts | both(weights)


def both(weights: dict[str, Tensor]) -> dict:
    return {"network": weights, "average": weights}


def widened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every map of the stages twice: the same outputs, by uneven shares so that they can part.

    Net2Net, Chen et al. 2016.
    """
    torch.manual_seed(1)
    wide = {}
    for name, value in weights.items():
        wide[name] = value
        if value.dim() == 4 and name.startswith(("stages", "sides")) and value.shape[1] != 3:
            share = torch.rand(1, value.shape[1], 1, 1) * 0.4 + 0.3
            wide[name] = torch.stack([value * share, value * (1 - share)], dim=2).flatten(1, 2)
        if name.startswith("stages"):
            wide[name] = wide[name].repeat_interleave(2, dim=0)
    return wide


def save_model(run: Path, average: SpecialisedVGG, state: dict) -> None:
    """The moving average of the weights and its card."""
    card = ModelCard(
        name="leuko-base",
        classes=CLASSES,
        preparation=Preparation(t1_optional=True),
        stages=vgg16(state["width"]),
        side_maps=SIDE_MAPS,
        three_planes=True,
        training={
            "script": "runs/train_base.py",
            "init": "none",
            "steps": state["step"],
            "slices": state["step"] * BATCH,
            "data": DATA,
            "synthesis_commit": commit(),
        },
        licence=LICENCE,
        leuko_version=versions()["leuko"],
    )
    save_weights(run, average.state_dict(), card)


def commit() -> str:
    """The commit of this repository, "-dirty" behind it where files differ from it."""
    git = shutil.which("git") or "git"
    described = subprocess.run(
        [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return described.stdout.strip()


def save_weights(run: Path, weights: dict[str, Tensor], card: ModelCard) -> None:
    """A model folder, in half precision."""
    tensors = {k: v.half().contiguous().cpu() for k, v in weights.items()}
    with staged(run) as scratch:
        (scratch / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        save_card(scratch, card)


def save(content: dict, path: Path) -> None:
    temporary = path.with_suffix(".part")
    torch.save(content, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    main()
