"""Synthetic slices among those of a training, so that a model keeps what it came with.

A few scans are made at a time, on the training's device, and drawn from for a while; the next ones
are made meanwhile. All follows from the seed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from leuko.anatomy import WMH, Anatomy
from leuko.channels import Preparation
from leuko.dataset import Slices
from leuko.synthesis import synthesise
from leuko.volume import Array

# Drawn from about once each, at two images a step.
SCANS, STEPS = 4, 50


class Rehearsal:
    """Slices of synthetic scans of some anatomies, `size` pixels (height, width) each."""

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        preparation: Preparation,
        size: tuple[int, int],
        seed: int,
    ) -> None:
        self._anatomies, self._preparation = anatomies, preparation
        self._size, self._seed = size, seed
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._made: dict[tuple[int, int], Future[Slices]] = {}

    def draw(
        self, step: int, part: int, count: int, *, lesion_part: float, rng: np.random.Generator
    ) -> tuple[Array, Array, Array]:
        """Images (N, H, W, 3), classes (N, H, W), and which are sagittal (N,), for part of a step.

        About `lesion_part` of them surely show a lesion.
        """
        turn = step // STEPS
        now, following = (self._submitted(turn + k, part) for k in range(2))
        self._made = {
            key: future
            for key, future in self._made.items()
            if future in (now, following) or key[1] != part
        }
        slices = now.result()
        lesions = replace(slices, labels=(slices.labels == WMH).astype(np.uint8))
        drawn = lesions.draw(count, lesion_part=lesion_part, rng=rng)
        return slices.images[drawn], slices.labels[drawn], slices.sagittal[drawn]

    def _submitted(self, turn: int, part: int) -> Future[Slices]:
        key = turn, part
        if key not in self._made:
            self._made[key] = self._pool.submit(self._make, turn, part)
        return self._made[key]

    def _make(self, turn: int, part: int) -> Slices:
        made = []
        for number in range(SCANS):
            seed = [self._seed, turn, part, number]
            anatomy = self._anatomies[
                int(np.random.default_rng([*seed, 1]).integers(len(self._anatomies)))
            ]
            scan = synthesise(anatomy, seed, size=self._size)
            images, classes = scan.slices(self._preparation)
            made.append(Slices(images, classes, np.full(len(images), scan.axis == 0)))
        return Slices(
            np.concatenate([part.images for part in made]),
            np.concatenate([part.labels for part in made]),
            np.concatenate([part.sagittal for part in made]),
        )
