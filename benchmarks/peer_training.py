"""How the networks of Leuko's peers are trained: for a given time, with checkpoints.

On one core: threads that wait for each other count as work, the more the busier the machine is.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leuko.io.files import write_json
from leuko.training.plan import precision
from leuko.training.recipes import MODERN

CHECKPOINT_SECONDS = 60.0

# The part of the time that is spent, and the step's own random numbers, become a loss.
Step = Callable[[float, np.random.Generator], Tensor]


class Clock:
    """Seconds of work of this process on its core, which other programs do not slow."""

    def __init__(self, before: float = 0.0) -> None:
        self.begun = processor_seconds() - before

    @property
    def seconds(self) -> float:
        return processor_seconds() - self.begun


def processor_seconds() -> float:
    return time.process_time()


def train(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Step,
    *,
    seconds: float,
    seed: int,
    images_per_step: int,
    largest_gradient: float,
) -> None:
    """Take steps until `seconds` are spent; leaves the weights in `path`, an account beside it.

    A training that was interrupted resumes from its last checkpoint, one that has ended stays.
    """
    state: dict[str, Any] = {"steps": 0, "seconds": 0.0, "finished": False}
    if path.is_file():
        state = load(path)
    if state["finished"]:
        return
    if state["steps"]:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    network.train()
    clock, saved, losses = Clock(state["seconds"]), time.monotonic(), []
    ended = False
    while not ended:
        rng = np.random.default_rng([seed, state["steps"]])
        loss = step(min(1.0, clock.seconds / seconds), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), largest_gradient)
        optimizer.step()
        losses.append(loss.item())
        state["steps"] += 1
        ended = clock.seconds >= seconds
        if ended or time.monotonic() - saved >= CHECKPOINT_SECONDS:
            state |= {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"seconds": clock.seconds, "finished": ended}
            save(path, state)
            account = {
                "steps": state["steps"],
                "images": state["steps"] * images_per_step,
                "seconds": round(state["seconds"], 1),
                "loss": round(float(np.mean(losses)), 4),
            }
            print(path.stem, json.dumps(account), flush=True)
            write_json(path.with_suffix(".json"), account)
            saved, losses = time.monotonic(), []


def mixed_precision() -> torch.autocast:
    """For the networks alone: images that are moved in bfloat16 would be blurred."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_in_bfloat16())


def multiplies_in_bfloat16() -> bool:
    """Whether Leuko would train in it here."""
    return precision(MODERN, "cpu") == "bf16-mixed"


def load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save(path: Path, state: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)
