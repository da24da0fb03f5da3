"""Training, told in order.

A run is a folder: its settings, the last checkpoint, and at the end a model and its measures.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save
from torch import Tensor, nn

from leuko import held_out, losses, parallel, plan, runtime
from leuko.anatomy import CLASSES
from leuko.batches import Batch, Batches
from leuko.batchnorm import folded
from leuko.board import Board
from leuko.channels import centred
from leuko.dataset import Slices, find_subjects, load
from leuko.errors import LeukoError
from leuko.evaluate import Row, json_ready
from leuko.files import staged, write_json
from leuko.metrics import dice
from leuko.network import SpecialisedVGG
from leuko.plan import CHECKPOINT_FILE, RUN_FILE, Plan, Settings
from leuko.recipes import Phase, Recipe, phase_at
from leuko.record import Stopwatch
from leuko.rehearsal import Rehearsal
from leuko.volume import Array
from leuko.weights import WEIGHTS_FILE, ModelCard, load_card, save_card

COMPARED = 48  # slices
CHECKPOINT_SECONDS = 60.0  # what a kill can cost; writing one takes about a second

LOSSES = {
    "summed-cross-entropy": losses.summed_cross_entropy,
    "cross-entropy-dice": losses.cross_entropy_dice,
}


@dataclass(frozen=True)
class Progress:
    """Where a training is: `step` of `steps` done, the last step's loss and its speed."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def fit(
    run: Path,
    *,
    on_step: Callable[[Progress], None] = lambda _: None,
    doing: Callable[[str], None] = lambda _: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Row]:
    """Train the run in a folder that `plan.start` made, from its last checkpoint.

    Leaves the model and its card in the folder and returns the measures of the held-out subjects,
    by subject. `doing` is told what is done before and after the steps. Every random choice follows
    from the seed and the number of the step, so that a run that was stopped and resumed gives the
    same weights, bit for bit on CPUs of one kind. Of processes that share a training the first
    writes and measures.

    Raises LeukoError when the run is finished, the scans have changed, the checkpoint is damaged,
    the device is missing, or the loss diverges.
    """
    parallel.wait_for(run / RUN_FILE)
    planned = plan.read(run)
    settings, recipe = planned.settings, planned.settings.recipe
    if planned.record["finished"]:
        raise LeukoError(f"{run} is finished; its measures are in {run / RUN_FILE}")
    watch = Stopwatch()
    runtime.require_device(planned.device)
    torch.set_num_threads(planned.threads)
    parallel.require_even(recipe.images_per_step)
    fabric = parallel.join(planned.device, planned.precision)
    doing("preparing")
    with watch.stage("prepare"):
        batches = _batches(planned, fabric.device)
        validation = _slices(planned, "validation") if settings.patience else None

    saved = _load_checkpoint(run, fabric.device)
    step, spent = saved["step"], saved.get("seconds", 0.0)
    network = plan.built(settings)
    network.load_state_dict(saved["model"])
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval()
    average.load_state_dict(saved.get("average", saved["model"]))
    optimizer = _optimizer(recipe, network)
    if step:
        optimizer.load_state_dict(saved["optimizer"])
    best = saved.get("best", {"loss": math.inf, "step": 0})
    start = saved.get("start", saved["model"]) if recipe.start_part else {}
    board = Board(run, step) if fabric.is_global_zero else None

    frozen = -1
    with watch.stage("train", before=spent), closing(batches):
        begun_training = last_saved = time.monotonic()
        while step < recipe.steps and not _is_over(best, step, settings):
            begun = time.monotonic()
            if _frozen(recipe, step) != frozen:
                frozen = _frozen(recipe, step)
                model = _set_up(fabric, network, frozen=frozen, compiled=settings.compiled)
            phase, rate = phase_at(recipe, step, recipe.steps)
            _set_rate(optimizer, phase, rate)
            batch = batches.draw(step).share(fabric.global_rank, fabric.world_size)
            loss, logits = _backward(fabric, model, batch, recipe)
            if not math.isfinite(loss):
                raise LeukoError(
                    f"the loss is {loss} at step {step + 1}: the training diverged; "
                    "check the scans, or use another recipe or start"
                )
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            _follow(average, network, recipe, step)
            speed = recipe.images_per_step / (time.monotonic() - begun)
            numbers = {"loss": loss, "rate": rate, "images_per_second": speed}
            if validation and step % recipe.validate_steps == 0:
                validated = _validation_loss(fabric, average, validation, recipe)
                numbers["validation_loss"] = validated
                best = _better(best, validated, step, average)
            if board:
                board.log(step, numbers, batch, logits)
                ends = step == recipe.steps or _is_over(best, step, settings)
                if ends or time.monotonic() - last_saved >= checkpoint_seconds:
                    state = {
                        "model": network.state_dict(),
                        "average": average.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "start": start,
                        "best": best,
                        "step": step,
                        "seconds": spent + time.monotonic() - begun_training,
                    }
                    torch.save(state, run / f"{CHECKPOINT_FILE}.part")
                    (run / f"{CHECKPOINT_FILE}.part").replace(run / CHECKPOINT_FILE)
                    last_saved = time.monotonic()
            on_step(Progress(step, recipe.steps, loss, speed))
    if board is None:
        return {}

    board.close()
    average.load_state_dict(best.get("model", average.state_dict()))
    with staged(run) as scratch:
        tensors = {
            name: torch.lerp(tensor, start.get(name, tensor), recipe.start_part).cpu().contiguous()
            for name, tensor in folded(average).state_dict().items()
        }
        (scratch / WEIGHTS_FILE).write_bytes(save(tensors))  # save_file hides it from colleagues
        save_card(scratch, _trained(planned, step, best))
    with watch.stage("measure"):
        trained = runtime.load(run, device=planned.device, threads=planned.threads)
        masks = run / held_out.MASKS
        measures = held_out.measures(planned.groups["held_out"], trained, masks, doing=doing)
    finished = {"finished": True, "seconds": watch.seconds}
    shown = {name: json_ready(row) for name, row in measures.items()}
    write_json(run / f"{RUN_FILE}.part", planned.record | finished | {"measures": shown})
    (run / f"{RUN_FILE}.part").replace(run / RUN_FILE)
    (run / CHECKPOINT_FILE).unlink()  # several times as large as the weights
    return measures


def training_slices(run: Path, data: Path | None = None) -> Array:
    """The colour slices (N, H, W, 3), uint8, of the subjects that a run trained with, or of those
    in `data`. Raises LeukoError if the scans are gone or changed."""
    if data is not None:
        return load(find_subjects(data), load_card(run).preparation).images
    if not (run / RUN_FILE).is_file():
        raise LeukoError(f"{run} does not say what it was trained with; give scans with --data")
    planned = plan.read(run)
    return load(planned.groups["train"], planned.settings.preparation).images


def rounding(model: Path, exported: Path, slices: Array) -> tuple[int, float, float]:
    """What 8 bits change, on how many of the slices (N, H, W, 3): the Dice of the masks of a model
    and of its export, and the change of what is found, in per cent; nan where nothing is."""
    chosen = slices[np.unique(np.linspace(0, len(slices) - 1, COMPARED).astype(int))]
    before, after = (
        found.predict(chosen)[:, -1] >= found.card.threshold
        for found in (runtime.load(model), runtime.load(exported))
    )
    change = 100 * (after.sum() / before.sum() - 1) if before.any() else math.nan
    return len(chosen), dice(prediction=after, reference=before), float(change)


def _slices(planned: Plan, group: str) -> Slices:
    return load(
        planned.groups[group],
        planned.settings.preparation,
        three_planes=planned.card.three_planes,
    )


def _batches(planned: Plan, device: torch.device) -> Batches:
    settings, recipe = planned.settings, planned.settings.recipe
    slices = _slices(planned, "train")
    rehearsal = None
    if recipe.synthetic_images:
        # Synthesis reckons in float64, which Apple's GPUs lack.
        makes = device if device.type != "mps" else torch.device("cpu")
        rehearsal = Rehearsal(
            plan.anatomies(settings.heads, makes),
            settings.preparation,
            size=slices.images.shape[1:3],
            seed=settings.seed,
        )
    return Batches(
        slices,
        recipe,
        channels=settings.preparation.channels,
        seed=settings.seed,
        device=device,
        rehearsal=rehearsal,
        tissues=settings.classes == CLASSES,
    )


def _load_checkpoint(run: Path, device: torch.device) -> dict[str, Any]:
    try:
        return torch.load(  # type: ignore[no-any-return]
            run / CHECKPOINT_FILE, map_location=device, weights_only=True
        )
    except Exception as error:  # torch raises whatever a damaged file provokes
        raise LeukoError(
            f"{run / CHECKPOINT_FILE} is damaged or missing; delete {run} and start again"
        ) from error


def _optimizer(recipe: Recipe, network: SpecialisedVGG) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(network.parameters(), weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)


def _frozen(recipe: Recipe, step: int) -> int:
    """How many of the first stages stay as they are at a step."""
    return recipe.frozen_stages if step < recipe.frozen_part * recipe.steps else 0


def _set_up(fabric: Fabric, network: SpecialisedVGG, *, frozen: int, compiled: bool) -> Any:
    """The network as the processes compute it, its first stages not to be trained."""
    for number, stage in enumerate(network.stages):
        stage.requires_grad_(number >= frozen)
    return fabric.setup_module(cast("nn.Module", torch.compile(network)) if compiled else network)


def _backward(fabric: Fabric, model: Any, batch: Batch, recipe: Recipe) -> tuple[float, Tensor]:
    """The gradients of a step, of which this process computes its share; its loss, which is that
    of all, and the logits."""
    logits = model(batch.images).float()
    loss = _loss(logits, batch, recipe, partial(parallel.total, fabric))
    # Processes take the mean of their gradients; a step wants the sum.
    fabric.backward(loss * fabric.world_size)
    return float(loss.detach()), logits.detach()


def _loss(logits: Tensor, batch: Batch, recipe: Recipe, total: losses.Total) -> Tensor:
    """The subjects' slices know only WMH and not WMH, synthetic ones may know tissues."""
    loss_of, real, synthetic = LOSSES[recipe.loss], len(batch.labels), recipe.synthetic_images
    loss = loss_of(losses.wmh_or_not(logits[:real]), batch.labels, total)
    if synthetic:
        part = synthetic / recipe.images_per_step
        loss = (1 - part) * loss + part * loss_of(logits[real:], batch.classes, total)
    return loss


def _follow(
    average: SpecialisedVGG, network: SpecialisedVGG, recipe: Recipe, steps_done: int
) -> None:
    """Move the moving average of the weights, at the beginning over the last tenth of the steps.

    What batch normalisation keeps is an average itself.
    """
    span = max(1.0, min(recipe.averaged_part * recipe.steps, 1 + steps_done / 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 / span)
        for kept, last in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(last)


def _validation_loss(
    fabric: Fabric, network: SpecialisedVGG, slices: Slices, recipe: Recipe
) -> float:
    """The mean loss of all slices as they are, of which each process computes its share."""
    loss_sum = torch.zeros((), device=fabric.device)
    count = len(slices.images)
    batches = torch.split(torch.arange(count), recipe.images_per_step)
    for indices in batches[fabric.global_rank :: fabric.world_size]:
        images = torch.from_numpy(centred(slices.images[indices])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(slices.labels[indices]).long().to(fabric.device)
        with torch.no_grad(), fabric.autocast():
            logits = network(images.to(fabric.device))
        loss_sum += len(indices) * LOSSES[recipe.loss](losses.wmh_or_not(logits.float()), labels)
    return float(parallel.total(fabric, loss_sum)) / count


def _better(
    best: Mapping[str, Any], loss: float, step: int, average: SpecialisedVGG
) -> Mapping[str, Any]:
    """The best validation so far, with its weights."""
    if best["loss"] <= loss:
        return best
    return {"loss": loss, "step": step, "model": copy.deepcopy(average.state_dict())}


def _is_over(best: Mapping[str, Any], step: int, settings: Settings) -> bool:
    """Whether the validation loss has not fallen for too long."""
    patience = settings.patience * settings.recipe.validate_steps
    return bool(patience) and step - best["step"] >= patience


def _trained(planned: Plan, step: int, best: Mapping[str, Any]) -> ModelCard:
    """The card of the model, with the step that its weights are of."""
    kept = best["step"] if planned.settings.patience else step
    return replace(planned.card, training={**planned.card.training, "steps": kept})


def _set_rate(optimizer: torch.optim.Optimizer, phase: Phase, rate: float) -> None:
    """Set learning rate and momentum, keeping Caffe's velocity when the rate changes.

    Caffe, which the paper used, folds the rate into the velocity (v = m v + rate g; w -= v),
    PyTorch does not (u = m u + g; w -= rate u). The same weights follow if u = v / rate is
    rescaled whenever the rate changes.
    """
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = phase.momentum
            for parameter in group["params"]:
                velocity = optimizer.state[parameter].get("momentum_buffer")
                if velocity is not None and group["lr"] != rate:
                    velocity *= group["lr"] / rate
        group["lr"] = rate
