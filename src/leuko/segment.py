"""The main job, told in order: two scans and a model become a mask, a probability map, numbers."""

import importlib.metadata
import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from leuko import nifti, runtime, weights
from leuko.channels import Pair
from leuko.errors import LeukoError
from leuko.files import read_json, sha256, staged, write_json
from leuko.lesions import drop_small, find_lesions
from leuko.volume import Array, Volume

MASK_FILE = "wmh.nii.gz"
PROBABILITY_FILE = "wmh_prob.nii.gz"
TISSUE_FILE = "tissue.nii.gz"
RECORD_FILE = "run.json"


@dataclass(frozen=True)
class Segmentation:
    """What `segment` found. Volumes in mL; `seconds` by stage, in order."""

    mask: Volume  # uint8, 1 = WMH
    probability: Volume  # float32, 0 to 1
    tissue: Volume | None  # uint8, the model's classes; None if it knows background and WMH alone
    volume_ml: float
    lesions: int
    seconds: dict[str, float]


@dataclass
class Stopwatch:
    """Seconds by stage, in the order in which the stages were first run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, *, before: float = 0.0) -> Iterator[None]:
        """Time a stage; `before` are the seconds that an earlier, interrupted try has spent."""
        start = time.perf_counter() - before
        yield
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


def segment(
    flair: Path,
    t1: Path | None,
    out: Path,
    *,
    model: str | Path = weights.DEFAULT,
    threshold: float | None = None,
    smallest_lesion_mm3: float | None = None,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> Segmentation:
    """Segment one brain and write `wmh.nii.gz`, `wmh_prob.nii.gz` and `run.json` into `out`.

    A model that knows tissues gives `tissue.nii.gz` too. All are on the grid of the FLAIR as it
    was stored. `model` is a folder or a name; `threshold` and `smallest_lesion_mm3` default to
    the model's own. Raises LeukoError; `out` then holds what it held before.
    """
    _refuse_foreign_files(out)
    watch = Stopwatch()
    with staged(out) as scratch:
        with watch.stage("load model"):
            folder = weights.find(str(model))
            loaded = runtime.load(folder, device=device, threads=threads)
        if threshold is None:
            threshold = loaded.card.threshold
        if smallest_lesion_mm3 is None:
            smallest_lesion_mm3 = loaded.card.smallest_lesion_mm3
        if not 0 < threshold < 1:
            raise LeukoError(f"the threshold {threshold:g} is not between 0 and 1")
        if not 0 <= smallest_lesion_mm3 < math.inf:
            raise LeukoError(f"the smallest lesion of {smallest_lesion_mm3:g} mm3 is no volume")
        with watch.stage("read"):
            flair_scan = nifti.read(flair)
            t1_scan = nifti.read(t1) if t1 else None
        shares = predict(flair_scan, t1_scan, loaded, watch)
        probability = shares[-1]
        mask = to_mask(
            probability, threshold, smallest_mm3=smallest_lesion_mm3, voxel_mm3=flair_scan.voxel_mm3
        )
        result = Segmentation(
            mask=flair_scan.with_data(mask.astype(np.uint8)),
            probability=flair_scan.with_data(probability),
            tissue=to_tissue(shares, mask, flair_scan) if len(shares) > 2 else None,
            volume_ml=float(mask.sum()) * flair_scan.voxel_mm3 / 1000,
            lesions=find_lesions(mask)[1],
            seconds=watch.seconds,
        )
        with watch.stage("write"):
            nifti.write(scratch / MASK_FILE, result.mask)
            nifti.write(scratch / PROBABILITY_FILE, result.probability)
            if result.tissue is not None:
                nifti.write(scratch / TISSUE_FILE, result.tissue)
        write_json(
            scratch / RECORD_FILE,
            {
                "command": "segment",
                "versions": versions(),
                "inputs": {
                    name: {"path": str(path), "sha256": sha256(path)}
                    for name, path in (("flair", flair), ("t1", t1))
                    if path
                },
                "model": {
                    "name": loaded.card.name,
                    "path": str(folder),
                    "weights_sha256": loaded.card.weights_sha256,
                },
                "settings": {
                    "threshold": threshold,
                    "smallest_lesion_mm3": smallest_lesion_mm3,
                    "device": device,
                },
                "volume_ml": round(result.volume_ml, 4),
                "lesions": result.lesions,
                "tissue_ml": _volumes_ml(result.tissue, loaded.card.classes),
                "seconds": watch.seconds,
            },
        )
    if result.tissue is None:  # one of an earlier model
        (out / TISSUE_FILE).unlink(missing_ok=True)
    return result


def _refuse_foreign_files(out: Path) -> None:
    """Raises LeukoError where writing would replace an expert's labels or a training run, and
    for the name of an image."""
    if out.name.endswith((".nii", ".nii.gz")):
        raise LeukoError(f"{out} names an image; give -o a folder, the mask will be in it")
    record = out / RECORD_FILE
    ours = record.is_file() and read_json(record, what="record").get("command") == "segment"
    there = [
        name
        for name in (MASK_FILE, PROBABILITY_FILE, TISSUE_FILE, RECORD_FILE)
        if (out / name).exists()
    ]
    if there and not ours:
        raise LeukoError(
            f"{out / there[0]} is there and was not written by leuko segment; "
            "choose another folder with -o"
        )


def predict(
    flair: Volume, t1: Volume | None, model: runtime.Model, watch: Stopwatch | None = None
) -> Array:
    """Probabilities (C, X, Y, Z) of the model's classes on the grid of the FLAIR, float32 in
    [0, 1]; the last is WMH. Where the model saw nothing all are 0.

    A model of three planes sees a nearly isotropic scan along each axis; the mean is returned.
    """
    watch = watch or Stopwatch()
    all_planes = model.card.three_planes and flair.is_nearly_isotropic
    shares = np.zeros((len(model.card.classes), *flair.data.shape), dtype=np.float32)
    axes = range(3) if all_planes else (None,)
    with watch.stage("prepare"):
        pair = Pair.of(flair, t1, model.card.preparation)
    for axis in axes:
        with watch.stage("prepare"):
            slices, placement = pair.slices(axis)
        with watch.stage("predict"):
            probabilities = model.predict(slices)
        with watch.stage("restore"):
            for k in range(len(shares)):  # one class at a time: they are large
                shares[k] += placement.restore(probabilities[:, k]) / len(axes)
    return np.clip(shares, 0, 1, out=shares)


def to_tissue(shares: Array, mask: Array, flair: Volume) -> Volume:
    """The most probable class of each voxel, uint8; WMH just where the mask is."""
    classes = shares[:-1].argmax(axis=0)
    return flair.with_data(np.where(mask, len(shares) - 1, classes).astype(np.uint8))


def _volumes_ml(tissue: Volume | None, classes: Sequence[str]) -> dict[str, float] | None:
    if tissue is None:
        return None
    counts = np.bincount(tissue.data.ravel(), minlength=len(classes))
    return {
        name: round(float(count) * tissue.voxel_mm3 / 1000, 3)
        for name, count in list(zip(classes, counts, strict=True))[1:]
    }


def to_mask(
    probability: Array, threshold: float, *, smallest_mm3: float, voxel_mm3: float
) -> Array:
    """Voxels at or above the threshold, without lesions smaller than `smallest_mm3`, as bool."""
    return drop_small(probability >= threshold, voxel_mm3=voxel_mm3, smallest_mm3=smallest_mm3)


def versions() -> dict[str, str]:
    """Of Leuko and all that can change its numbers."""
    names = ("leuko", "numpy", "scipy", "nibabel", "diplib", "onnxruntime", "torch")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
