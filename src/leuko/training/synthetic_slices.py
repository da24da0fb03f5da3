"""Synthetic slices for a mixed training, made ahead by processes, on a GPU or on CPU cores.

A scan follows from the seed and its number, and the scans that a step draws from follow from the
step, not from the number of processes. Slices are kept in files, which a resumed run reuses.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.files import image_stem
from leuko.io.tissue import Tissue
from leuko.synthesis.anatomy import Anatomy, from_mni152, load_head
from leuko.synthesis.images import synthesise
from leuko.synthesis.sampling import choose
from leuko.synthesis.settings import SynthesisSettings
from leuko.training.real_slices import CANVAS, PREPARATION, shows_head

EVERY_MM = (4.0, 6.0)  # least distances of slices: neighbouring thin ones are nearly alike
LEAST_PIXELS = 2  # of WMH in a slice that counts as showing WMH


@dataclass(frozen=True)
class Maker:
    """Makes synthetic scans, and keeps their slices in files."""

    heads: tuple[Path, ...]  # anatomies, as torch saved them
    atlas: tuple[Path, ...]  # lesion masks in MNI space
    folder: Path
    device: str
    seed: int
    settings: SynthesisSettings

    def make(self, number: int) -> Path:
        """The file of a scan: `slices` (N, H, W, 4), uint8, the last being the classes, and whether
        it is `sagittal`."""
        path = self.folder / f"{number:07d}.npz"
        if path.is_file():
            return path
        rng = np.random.default_rng([self.seed, number, 2])  # apart from the streams of the steps
        torch.set_num_threads(1)
        head = read_anatomy(self.heads[int(rng.integers(len(self.heads)))], self.device)
        atlas = [read_mask(mask, self.device) for mask in self.atlas]
        every_mm = float(rng.choice(EVERY_MM))
        choice = choose(head, rng, every_mm=every_mm, settings=self.settings.sampling)
        size = CANVAS["head" if choice.head else "brain"]
        try:
            with torch.inference_mode():
                scan = synthesise(
                    head,
                    [self.seed, number, 3],
                    atlas=atlas,
                    choice=choice,
                    size=size,
                    settings=self.settings,
                )
                images, classes = scan.slices(PREPARATION)
        except LeukoError:  # an odd image, without a grey value that is that of tissue
            images, classes = np.zeros((0, *size, 3), np.uint8), np.zeros((0, *size), np.uint8)
        slices = np.concatenate([images, classes[..., None]], axis=-1)[shows_head(images)]
        part = path.with_suffix(".part.npz")
        np.savez(part, slices=slices, sagittal=choice.axis == 0)
        part.replace(path)
        return path


@cache
def read_anatomy(path: Path, device: str) -> Anatomy:
    return Anatomy(**torch.load(path, weights_only=True)).to(torch.device(device))


@cache
def read_mask(path: Path, device: str) -> Tensor:
    return torch.from_numpy(nifti.read_mask(path).canonical().data > 0).to(device)


def save_anatomy(head: Path | None, folder: Path) -> Path:
    """The anatomy of a label map, or of the MNI152 brain, in a file, which is quicker to read."""
    out = folder / f"{image_stem(head) if head else 'MNI152'}.pt"
    if not out.is_file():
        part = out.with_suffix(".part")
        anatomy = load_head(head) if head else from_mni152()
        torch.save({f.name: getattr(anatomy, f.name) for f in fields(anatomy)}, part)
        part.replace(out)
    return out


class Synthetic:
    """The newest `kept` synthetic scans; with each step, `fresh` of them are replaced."""

    def __init__(
        self,
        heads: Sequence[Path],
        atlas: Sequence[Path],
        folder: Path,
        *,
        device: torch.device,
        processes: int,
        seed: int,
        kept: int,
        fresh: float,
        settings: SynthesisSettings,
    ) -> None:
        """`heads` are label maps; without any, all scans are of the MNI152 brain."""
        folder.mkdir(parents=True, exist_ok=True)
        self.device, self._kept, self._fresh = device, kept, fresh
        # Synthesis computes in float64, which Apple's GPUs lack.
        makes = "cpu" if device.type == "mps" else str(device)
        # The training handles Ctrl-C, not the workers.
        self._pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=signal.signal,
            initargs=(signal.SIGINT, signal.SIG_IGN),
        )
        self._ahead = 3 * processes
        try:
            files = self._pool.map(partial(save_anatomy, folder=folder), heads or [None])
            self._maker = Maker(tuple(files), tuple(atlas), folder, makes, seed, settings)
        except BaseException:  # Ctrl-C too: do not wait for other label maps
            self.close()
            raise
        self._making: dict[int, Future[Path]] = {}
        self._scans: deque[tuple[str, Tensor, bool, Sequence[bool]]] = deque(maxlen=kept)
        self._next = 0  # number of the scan to take next

    def advance(self, step: int) -> None:
        """Take the scans that belong to a step, which a later step follows."""
        end = self._kept + int(step * self._fresh)
        self._next = max(self._next, end - self._kept)
        for number in range(self._next, end + self._ahead):
            if number not in self._making:
                self._making[number] = self._pool.submit(self._maker.make, number)
        for number in range(self._next, end):
            with np.load(self._making.pop(number).result()) as file:
                slices, sagittal = file["slices"], bool(file["sagittal"])
            lesion = (slices[..., 3] == Tissue.WMH).sum(axis=(1, 2)) >= LEAST_PIXELS
            canvas = next(name for name, size in CANVAS.items() if size == slices.shape[1:3])
            on_device = torch.from_numpy(slices).to(self.device)
            self._scans.append((canvas, on_device, sagittal, lesion.tolist()))
            (self._maker.folder / f"{number - self._kept:07d}.npz").unlink(missing_ok=True)
        if self._next < end:
            self._next = end
            self._index()

    def draw(
        self, canvas: str, count: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, H, W, 3), classes (N, H, W) and which are sagittal (N,) of slices of a canvas;
        half of them show WMH, if any does."""
        every, shown = self._places[canvas]
        places = [every[k] for k in rng.integers(len(every), size=count)]
        if shown:
            half = (count + 1) // 2
            places[:half] = [shown[k] for k in rng.integers(len(shown), size=half)]
        slices = torch.stack([self._scans[scan][1][number] for scan, number in places])
        sagittal = torch.tensor([self._scans[scan][2] for scan, _ in places], device=self.device)
        return slices[..., :3], slices[..., 3], sagittal

    @property
    def canvases(self) -> list[str]:
        """Those of which there are slices."""
        return [canvas for canvas, (every, _) in self._places.items() if every]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _index(self) -> None:
        """Where the slices of each canvas are, and which of them show WMH."""
        self._places: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {
            canvas: ([], []) for canvas in CANVAS
        }
        for scan, (canvas, _, _, lesion) in enumerate(self._scans):
            every, shown = self._places[canvas]
            for number, shows in enumerate(lesion):
                every.append((scan, number))
                if shows:
                    shown.append((scan, number))
