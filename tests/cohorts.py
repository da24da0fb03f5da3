"""Cohorts to run: their tables, their commands, and eight ways to spoil a subject."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import psutil

from leuko.io.outputs import MASK_FILE

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24
# What the failure of a subject that is spoilt in this way must say.
REASONS = {
    "truncated": "FLAIR.nii.gz is damaged",
    "zeros": "FLAIR.nii.gz is all zeros",
    "four": "expected one 3-D image",
    "swapped": "were FLAIR and T1 swapped?",
    "alone": "T1.nii.gz does not exist",
    "forbidden": "cannot be read; check its permissions",
    "huge": "of memory",
    "endless": "took longer than",
}


def table(path: Path, subjects: Iterable[tuple[str, Path]]) -> Path:
    """Write the table of subjects: their names and the folders of their scans."""
    rows = [f"{name}\t{folder}/FLAIR.nii.gz\t{folder}/T1.nii.gz" for name, folder in subjects]
    path.write_text("\n".join(["id\tflair\tt1", *rows]) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "leuko.cli", *map(str, arguments)]


def written(out: Path) -> dict[str, int]:
    """When each subject's mask was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob(f"[!.]*/{MASK_FILE}")}


def spoil(folders: Mapping[str, Path]) -> None:
    """Spoil the scans in a folder for each of `REASONS`; the process of "endless" is `stopped`."""
    flair = {way: folder / "FLAIR.nii.gz" for way, folder in folders.items()}
    flair["truncated"].write_bytes(flair["truncated"].read_bytes()[:20_000])
    image = nibabel.load(flair["zeros"])
    data = np.asarray(image.dataobj)
    nibabel.save(nibabel.Nifti1Image(np.zeros_like(data), image.affine), flair["zeros"])
    image = nibabel.load(flair["four"])
    four = np.stack([np.asarray(image.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(four, image.affine), flair["four"])
    swap(folders["swapped"])
    (folders["alone"] / "T1.nii.gz").unlink()
    flair["forbidden"].chmod(0)
    huge = np.zeros((500, 500, 500), np.int16)
    grey = np.random.default_rng(0).integers(50, 150, (300, 300, 300))
    huge[100:400, 100:400, 100:400] = grey
    for path, image in ((flair["huge"], huge), (folders["huge"] / "T1.nii.gz", 2 * huge)):
        nibabel.save(nibabel.Nifti1Image(image, np.diag([0.4, 0.4, 0.4, 1])), path)


def swap(folder: Path) -> None:
    """FLAIR becomes T1, and T1 FLAIR."""
    flair, t1 = folder / "FLAIR.nii.gz", folder / "T1.nii.gz"
    kept = t1.rename(folder / "x")
    flair.rename(t1)
    kept.rename(flair)


def mere_mortal() -> None:
    """Root, too, may not read what its owner has forbidden, from the next program on."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@contextmanager
def stopped(name: str) -> Iterator[None]:
    """The process of a subject does nothing any more, from its first moment on."""
    over = threading.Event()

    def stop() -> None:
        while not over.wait(0.02):
            for process in psutil.process_iter(["cmdline"]):
                if f"/.leuko-{name}-" in " ".join(process.info["cmdline"] or ()):
                    process.suspend()
                    return

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def awaited(question: Callable[[], object]) -> object:
    """The answer, once there is one; five minutes are more than any machine needs."""
    for _ in range(3000):
        answer = question()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError("nothing came")
