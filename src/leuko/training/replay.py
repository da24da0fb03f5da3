"""Synthetic slices among those of an adaptation, so that the model keeps what it has learnt.

A few scans are made at a time, on the training's device, and drawn from for some steps, while the
next ones are made. All follows from the seed.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from leuko.io.tissue import Tissue
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.anatomy import Anatomy
from leuko.synthesis.images import synthesise
from leuko.synthesis.settings import SynthesisSettings
from leuko.training.dataset import Slices, joined
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
        settings: SynthesisSettings,
    ) -> None:
        self._anatomies, self._preparation = anatomies, preparation
        self._size, self._seed, self._settings = size, seed, settings
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._made: dict[int, list[Future[Slices]]] = {}  # by turn
        self._turn = -1  # whose slices are at hand

    def draw(
        self, step: int, count: int, *, lesion_part: float, rng: np.random.Generator
    ) -> tuple[Array, Array, Array]:
        """Images (N, H, W, 3), classes (N, H, W), and which are sagittal (N,), for a step.

        About `lesion_part` of them surely show a lesion.
        """
        turn = step // STEPS
        if turn != self._turn:
            self._made = {t: self._made.get(t) or self._submit(t) for t in (turn, turn + 1)}
            self._turn = turn
            self._slices = joined([future.result() for future in self._made[turn]])
        slices = self._slices
        drawn = slices.draw(count, lesion_part=lesion_part, rng=rng)
        return slices.images[drawn], slices.labels[drawn], slices.sagittal[drawn]

    def close(self) -> None:
        """Make no more; a scan that is being made is waited for."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, turn: int) -> list[Future[Slices]]:
        return [self._pool.submit(self._make, turn, number) for number in range(SCANS)]

    def _make(self, turn: int, number: int) -> Slices:
        # Of five numbers, so that no other random stream is the same.
        rng = np.random.default_rng([self._seed, turn, number, 0, 1])
        anatomy = self._anatomies[int(rng.integers(len(self._anatomies)))]
        scan = synthesise(
            anatomy,
            rng.integers(2**32, size=4).tolist(),
            size=self._size,
            settings=self._settings,
        )
        images, classes = scan.slices(self._preparation)
        return Slices(images, classes, np.full(len(images), scan.axis == 0), Tissue.WMH)
