"""The training loop.

It resumes a run folder from its last checkpoint, and leaves there a model and its measures.
"""

import copy
import math
import shutil
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
from torch import Tensor, nn

from leuko.errors import LeukoError
from leuko.evaluation.evaluate import Row, json_ready
from leuko.evaluation.labels import WMH_LABELS
from leuko.evaluation.metrics import dice
from leuko.io.files import require_writable, write_json
from leuko.io.provenance import Stopwatch
from leuko.model import runtime
from leuko.model.card import ModelCard, load_card
from leuko.model.network import SpecialisedVGG
from leuko.preprocessing.slices import centred
from leuko.training import holdout, objective, plan, processes
from leuko.training.batch_norm import folded
from leuko.training.batches import Batch
from leuko.training.dataset import Slices, find_subjects, load
from leuko.training.objective import Losses
from leuko.training.plan import CHECKPOINT_FILE, RUN_FILE, Plan
from leuko.training.recipes import Phase, Recipe, phase_at
from leuko.training.settings import Settings
from leuko.training.storage import save_model
from leuko.training.tensorboard_log import Board
from leuko.volume import Array

COMPARED_SLICES = 48  # for the comparison of 8 bits with float32
CHECKPOINT_SECONDS = 60.0  # training time lost at most if killed; writing takes about 1 s


@dataclass(frozen=True)
class Progress:
    """The progress of a training: steps done, of how many; loss and speed of the last step."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def fit(
    run: Path,
    *,
    on_step: Callable[[Progress], None] = lambda _: None,
    doing: Callable[[str], None] = lambda _: None,
    minutes: float | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, Row]:
    """Train a run that `plan.start` made, from its last checkpoint until it is finished or the
    time limit `minutes` is reached.

    Writes the model and its card to the folder. Returns the measures of each held-out subject, for
    label maps those of each class; empty if the run is unfinished. `doing` is called with the name
    of each activity other than steps. All random numbers depend only on the seed and the step, so a
    resumed run gives the same weights as an uninterrupted one: bit-identical on CPUs of one kind.
    If several processes share the training, only the first writes and measures.

    Raises LeukoError if the run is finished, its folder cannot be written, the scans have changed,
    the checkpoint is damaged, the device is missing, or the loss diverges.
    """
    processes.wait_for(run / RUN_FILE)
    planned = plan.read(run)
    settings, recipe = planned.settings, planned.settings.recipe
    if planned.record["finished"]:
        raise LeukoError(f"{run} is finished; its measures are in {run / RUN_FILE}")
    require_writable(run)
    watch = Stopwatch()
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    runtime.require_device(planned.device)
    torch.set_num_threads(planned.threads)
    processes.require_shareable(recipe)
    fabric = processes.join(planned.device, planned.precision)
    saved = _load_checkpoint(run, fabric.device)
    doing("preparing")
    with watch.stage("prepare"):
        source, losses = objective.batches_and_losses(planned, run, fabric.device, doing)
        validation = objective.slices(planned, "validation") if settings.patience else None

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
    with watch.stage("train", before=spent), closing(source):
        begun_training = last_saved = time.monotonic()
        over = step == recipe.steps or _is_over(best, step, settings)
        stops = over or _is_late(fabric, end)
        while not stops:
            begun = time.monotonic()
            if _frozen(recipe, step) != frozen:
                frozen = _frozen(recipe, step)
                model = _set_up(fabric, network, frozen=frozen, compiled=settings.compiled)
            phase, rate = phase_at(recipe, step, recipe.steps)
            _set_rate(optimizer, phase, rate)
            batch = source.draw(step).share(fabric.global_rank, fabric.world_size)
            parts, logits = _backward(fabric, model, batch, losses)
            step += 1
            _update(optimizer, network, recipe, loss=parts["loss"], step=step)
            _update_average(average, network, recipe, step)
            speed = recipe.images_per_step / (time.monotonic() - begun)
            numbers = {**parts, "rate": rate, "images_per_second": speed}
            if validation and step % recipe.validate_steps == 0:
                validated = _validation_loss(fabric, average, validation, settings)
                numbers["validation_loss"] = validated
                best = _better(best, validated, step, average)
            over = step == recipe.steps or _is_over(best, step, settings)
            stops = over or _is_late(fabric, end)
            if board:
                board.log(step, numbers, batch, logits)
                if stops or time.monotonic() - last_saved >= checkpoint_seconds:
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
            on_step(Progress(step, recipe.steps, parts["loss"], speed))
    if board is None:
        return {}

    board.close()
    average.load_state_dict(best.get("model", average.state_dict()))
    tensors = {
        name: torch.lerp(tensor, start.get(name, tensor), recipe.start_part)
        for name, tensor in folded(average).state_dict().items()
    }
    save_model(run, tensors, _trained_card(planned, step, best))
    if not over:
        return {}
    with watch.stage("measure"):
        trained = runtime.load(run, device=planned.device, threads=planned.threads)
        measures = _measures(planned, trained, run / holdout.MASKS, doing)
    finished = {"finished": True, "seconds": watch.seconds}
    shown = {name: json_ready(row) for name, row in measures.items()}
    write_json(run / f"{RUN_FILE}.part", planned.record | finished | {"measures": shown})
    (run / f"{RUN_FILE}.part").replace(run / RUN_FILE)
    (run / CHECKPOINT_FILE).unlink()  # several times as large as the weights
    shutil.rmtree(run / objective.MATERIAL, ignore_errors=True)
    return measures


def training_slices(run: Path, data: Path | None = None) -> Array:
    """The colour slices (N, H, W, 3), uint8, of the training subjects of a run, or of the subjects
    in `data`. Raises LeukoError if the scans are missing or have changed."""
    if data is None:
        if not (run / RUN_FILE).is_file():
            raise LeukoError(
                f"{run / RUN_FILE}, which lists the training scans, does not exist; give labelled "
                "scans with --data"
            )
        planned = plan.read(run)
        settings = planned.settings
        if settings.recipe.mixture:
            raise LeukoError(
                f"{run} was trained with the recipe {settings.recipe.name}, whose slices are not "
                "kept; give labelled scans with --data"
            )
        return load(planned.groups["train"], settings.preparation, settings.labelling).images
    labelling = WMH_LABELS
    if (run / RUN_FILE).is_file():
        labelling = plan.read_settings(run)[0].labelling
    return load(find_subjects(data, labelling), load_card(run).preparation, labelling).images


def rounding(model: Path, exported: Path, slices: Array) -> tuple[int, float, float]:
    """Compare a model with its 8-bit export on some of the slices (N, H, W, 3).

    Returns the number of slices, the Dice between both masks, and the change of the segmented
    volume in per cent; nan if nothing is segmented. For a model without the class wmh, the masks of
    all classes but background are compared.
    """
    chosen = slices[np.unique(np.linspace(0, len(slices) - 1, COMPARED_SLICES).astype(int))]
    before, after = (_masks(runtime.load(folder), chosen) for folder in (model, exported))
    change = 100 * (after.sum() / before.sum() - 1) if before.any() else math.nan
    return len(chosen), dice(prediction=after, reference=before), float(change)


def _masks(model: runtime.Model, slices: Array) -> Array:
    """The masks of a model, bool: WMH (N, H, W), or each of its tissues (N, C - 1, H, W)."""
    probabilities = model.predict(slices)
    if model.card.knows_wmh:
        wmh: Array = probabilities[:, -1] >= model.card.threshold
        return wmh
    numbers = np.arange(1, probabilities.shape[1]).reshape(1, -1, 1, 1)
    tissues: Array = probabilities.argmax(axis=1)[:, None] == numbers
    return tissues


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
    """The optimiser, with one parameter group per learning rate and weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        rate = recipe.fusion_rate if name.startswith("fusion") else 1.0
        decay = recipe.weight_decay
        if name.endswith("bias"):
            rate, decay = rate * recipe.bias_rate, decay * recipe.bias_decay
        groups.setdefault((rate, decay), []).append(parameter)
    kind = torch.optim.SGD if recipe.optimiser == "sgd" else torch.optim.AdamW
    return kind(
        {"params": parameters, "rate_factor": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    )


def _frozen(recipe: Recipe, step: int) -> int:
    """The number of frozen stages at a step, counted from the first."""
    return recipe.frozen_stages if step < recipe.frozen_part * recipe.steps else 0


def _set_up(fabric: Fabric, network: SpecialisedVGG, *, frozen: int, compiled: bool) -> Any:
    """The network as all processes train it, with its first stages frozen."""
    for number, stage in enumerate(network.stages):
        stage.requires_grad_(number >= frozen)
    return fabric.setup_module(cast("nn.Module", torch.compile(network)) if compiled else network)


def _backward(
    fabric: Fabric, model: Any, batch: Batch, losses: Losses
) -> tuple[dict[str, float], Tensor]:
    """Compute the gradients of this process's share of the images.

    Returns the losses over all images, with their sum as `loss`, and the logits of the share.
    """
    logits = model(batch.images).float()
    parts = losses(logits, batch, partial(processes.total, fabric))
    loss = torch.stack([*parts.values()]).sum()
    # Fabric averages the gradients of the processes, but the step needs their sum.
    fabric.backward(loss * fabric.world_size)
    return {n: float(p.detach()) for n, p in {"loss": loss, **parts}.items()}, logits.detach()


def _update(
    optimizer: torch.optim.Optimizer,
    network: SpecialisedVGG,
    recipe: Recipe,
    *,
    loss: float,
    step: int,
) -> None:
    """Update the weights. Raises LeukoError if the loss is not finite."""
    if not math.isfinite(loss):
        raise LeukoError(
            f"the training diverged: the loss is {loss} at step {step}; check the scans, or use "
            "another --recipe or --init"
        )
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    optimizer.step()
    optimizer.zero_grad()


def _update_average(
    average: SpecialisedVGG, network: SpecialisedVGG, recipe: Recipe, steps_done: int
) -> None:
    """Update the moving average of the weights, in early steps over a tenth of the steps so far.

    Statistics of batch normalisation are copied, since they are moving averages already.
    """
    span = max(1.0, min(recipe.averaged_part * recipe.steps, 1 + steps_done / 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 / span)
        for kept, last in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(last)


def _validation_loss(
    fabric: Fabric, network: SpecialisedVGG, slices: Slices, settings: Settings
) -> float:
    """The mean loss of all slices, without augmentation; each process computes its share."""
    loss_sum = torch.zeros((), device=fabric.device)
    count = len(slices.images)
    batches = torch.split(torch.arange(count), settings.recipe.images_per_step)
    for indices in batches[fabric.global_rank :: fabric.world_size]:
        images = torch.from_numpy(centred(slices.images[indices])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(slices.labels[indices]).long().to(fabric.device)
        with torch.no_grad(), fabric.autocast():
            logits = network(images.to(fabric.device))
        loss_sum += len(indices) * objective.labelled_loss(logits.float(), labels, settings)
    return float(processes.total(fabric, loss_sum)) / count


def _better(
    best: Mapping[str, Any], loss: float, step: int, average: SpecialisedVGG
) -> Mapping[str, Any]:
    """The validation with the lowest loss so far, with its weights."""
    if best["loss"] <= loss:
        return best
    return {"loss": loss, "step": step, "model": copy.deepcopy(average.state_dict())}


def _is_over(best: Mapping[str, Any], step: int, settings: Settings) -> bool:
    """Whether the validation loss has not fallen for `patience` validations."""
    patience = settings.patience * settings.recipe.validate_steps
    return bool(patience) and step - best["step"] >= patience


def _is_late(fabric: Fabric, end: float) -> bool:
    """Whether the time limit is reached, by the clock of the first process."""
    return end < math.inf and bool(fabric.broadcast(time.monotonic() >= end))


def _measures(
    planned: Plan, model: runtime.Model, found: Path, doing: Callable[[str], None]
) -> dict[str, Row]:
    """The measures of the held-out subjects; their masks are written to the folder `found`."""
    subjects, settings = planned.groups.get("held_out", []), planned.settings
    if settings.label_names:
        labelling = settings.labelling
        return holdout.class_measures(subjects, model, labelling, found, doing=doing)
    return holdout.measures(subjects, model, found, doing=doing)


def _trained_card(planned: Plan, step: int, best: Mapping[str, Any]) -> ModelCard:
    """The card of the trained model, with the number of steps of the kept weights."""
    kept = best["step"] if planned.settings.patience else step
    return replace(planned.card, training={**planned.card.training, "steps": kept})


def _set_rate(optimizer: torch.optim.Optimizer, phase: Phase, rate: float) -> None:
    """Set learning rate and momentum such that SGD gives the same weights as Caffe's.

    Caffe includes the rate in the velocity (v = m v + rate g; w -= v), PyTorch does not (u = m u +
    g; w -= rate u). Both agree if u = v / rate is rescaled whenever the rate changes.
    """
    for group in optimizer.param_groups:
        own_rate = rate * group.get("rate_factor", 1.0)  # absent in older checkpoints
        if "momentum" in group:
            group["momentum"] = phase.momentum
            for parameter in group["params"]:
                velocity = optimizer.state[parameter].get("momentum_buffer")
                if velocity is not None and group["lr"] != own_rate:
                    velocity *= group["lr"] / own_rate
        group["lr"] = own_rate
