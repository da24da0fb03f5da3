"""The processes of a distributed training, started by torchrun; without torchrun, one process.

Only this module and `loop` use lightning_fabric.
"""

import logging
import os
import time
from pathlib import Path
from typing import Literal, cast

from lightning_fabric import Fabric
from torch import Tensor

from leuko.errors import LeukoError
from leuko.training.recipes import Recipe

# Without messages about the precision at each start.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

Precision = Literal["bf16-mixed", "32-true"]


def count() -> int:
    """The number of processes of the training, on all nodes."""
    return int(os.environ["WORLD_SIZE"]) if _by_torchrun() else 1


def count_here() -> int:
    """The number of processes of the training on this node."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _by_torchrun() else 1


def is_first() -> bool:
    """Whether this is the first process, which writes files and prints."""
    return not _by_torchrun() or os.environ["RANK"] == "0"


def wait_for(path: Path) -> None:
    """Wait until the first process has written a file.

    There is no timeout: if the first process fails, torchrun ends this one.
    """
    while not is_first() and not path.is_file():
        time.sleep(0.05)


def join(device: str, precision: Precision) -> Fabric:
    """Connect this process to the others; wait until all have started."""
    here = count_here()
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=count() // here,
        strategy="ddp" if count() > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def total(fabric: Fabric, own: Tensor) -> Tensor:
    """The sum of `own` over all processes; the gradient is that of this process's part alone."""
    if fabric.world_size == 1:
        return own
    # Pass a copy: all_reduce may overwrite its argument.
    summed = cast("Tensor", fabric.all_reduce(own.detach().clone(), reduce_op="sum"))
    return summed + (own - own.detach())


def require_shareable(recipe: Recipe) -> None:
    """Raises LeukoError if the recipe cannot be trained by this number of processes."""
    images_per_step = recipe.images_per_step
    if recipe.mixture and count() > 1:
        raise LeukoError(
            f"the recipe {recipe.name} trains in one process, but {count()} were started; "
            "start leuko train without torchrun"
        )
    if images_per_step % count():
        raise LeukoError(
            f"{images_per_step} images per step cannot be shared evenly by {count()} processes; "
            f"choose a number of processes that divides {images_per_step}"
        )


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
