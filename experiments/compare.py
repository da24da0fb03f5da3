"""Changes that `leuko compare` finds, against changes marked by experts and against no change.

    python experiments/compare.py DATA SCRATCH [--part experts|years|turned]

DATA: raw_clinical/ with patients at two times, transforms to a common space and expert masks of
change; real/ with one patient at three times and an expert mask of each. Prints three tables.

experts: how many of the experts' changes (10 mm3 and more) contain a changed voxel of ours, and how
many of our changes meet none of theirs. "Visible": the experts' changes in which the FLAIR changed
by at least 15 % of the tissue's grey value. "By masks alone": lesions found at one time only,
without comparing the FLAIR.
years: the same, where a change is a lesion of one expert mask that does not meet the other. Our
changes are false where both expert masks agree.
turned: each scan is rotated by 3 to 6 degrees, shifted by up to 6 mm along each axis, resampled
with cubic interpolation, segmented again and compared with itself: every change found is false.

Segmentations are kept in SCRATCH.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import scipy.ndimage
from registration import read_itk
from scipy.spatial.transform import Rotation

from leuko.io import nifti
from leuko.io.files import find_image
from leuko.lesions.components import drop_small, find_lesions
from leuko.longitudinal.changes import BORDER_EVIDENCE, BORDER_MM, LESION_BORDER_MM, STABLE, STATES
from leuko.longitudinal.compare import CHANGES_FILE, Comparison, compare
from leuko.preprocessing.registration import Mode
from leuko.segment import SegmentSettings, segment
from leuko.volume import Array, Volume, resample_onto

LEAST_MM3 = 10.0
DEGREES, MM = (3.0, 6.0), 6.0
CHECK = "ljubljana_26"  # measured, but no limit is chosen by it


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    for name in [options.part] if options.part else PARTS:
        print(f"\n{name}", flush=True)
        for number, row in enumerate(PARTS[name](options.data, options.scratch)):
            if number == 0:
                print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
            print(f"| {' | '.join(row.values())} |", flush=True)


def experts(data: Path, scratch: Path) -> Iterator[dict[str, str]]:
    for home in sorted((data / "raw_clinical").glob("change_*")):
        patient = home.name.removeprefix("change_")
        studies = [data / "raw_clinical" / f"{patient}_study{k}" for k in (1, 2)]
        result, found = compared(studies[0], studies[1], scratch)
        marked = as_seen(nifti.read_mask(home / "lesion_change.nii.gz"))
        to_baseline = read_itk(studies[0] / "FLAIR_to_common.txt")
        way = result.midspace.ways[0] @ to_baseline
        truth = onto(replace(marked, affine=way @ marked.affine), result)
        yield {"scans": patient, **volumes(result), **scores(truth, truth, found, result)}


def years(data: Path, scratch: Path) -> Iterator[dict[str, str]]:
    homes = sorted((data / "real").glob("mslesseg_*"))
    for first, second in combinations(homes, 2):
        result, found = compared(first, second, scratch)
        masks = []
        for home, way in zip((first, second), result.midspace.ways, strict=True):
            mask = as_seen(nifti.read_mask(home / "lesions.nii.gz"))
            masks.append(onto(replace(mask, affine=way @ mask.affine), result))
        truth = alone(masks[0], masks[1]) | alone(masks[1], masks[0])
        ml = result.midspace.grid.ml
        yield {
            "scans": f"{first.name}, {second.name[-1]}",
            **volumes(result),
            "experts' mL": f"{ml(masks[1]) - ml(masks[0]):+.2f}",
            **scores(truth, masks[0] ^ masks[1], found, result),
        }


def turned(data: Path, scratch: Path) -> Iterator[dict[str, str]]:
    homes = sorted(path.parent for path in data.glob("r*/*/FLAIR.nii.gz"))
    rng = np.random.default_rng(11)
    wander: list[float] = []
    by_lesion: list[float] = []
    for home in homes:
        twin = scratch / "turned" / f"{home.name}_turned"
        motion = random_motion(nifti.read(home / "FLAIR.nii.gz"), rng)
        if not twin.is_dir():
            turn(home, motion, twin)
        segmented(twin, scratch, "never")  # its T1 was turned with it
        result, found = compared(home, twin, scratch)
        changes = result.changes
        wandered_mm = abs(changes.change_ml) / changes.surface_mm2 * 1000
        if home.name != CHECK:
            wander.append(wandered_mm)
            by_lesion += [
                abs(c.change_ml) / c.floor_ml * LESION_BORDER_MM
                for c in changes.lesions
                if c.baseline_ml and c.followup_ml
            ]
        counts = changes.counts
        yield {
            "scan": home.name,
            **volumes(result),
            "border wandered, mm": f"{wandered_mm:.3f}",
            "lesions": str(len(changes.lesions)),
            "found once": str(sum(not (c.baseline_ml and c.followup_ml) for c in changes.lesions)),
            "new, resolved": str(counts["new"] + counts["resolved"]),
            "grown, shrunk": str(counts["grown"] + counts["shrunk"]),
            "falsely changed, mL": f"{result.midspace.grid.ml(found):.3f}",
        }
    print(f"\nborder wandered, mm, without {CHECK}")
    print(f"a scan's: median {np.median(wander):.3f}, most {max(wander):.3f} (floor {BORDER_MM})")
    percentiles = np.percentile(by_lesion, (50, 90, 95, 99))
    shown = ", ".join(f"{mm:.3f}" for mm in percentiles)
    print(f"a lesion's: 50, 90, 95, 99 %: {shown} of {len(by_lesion)} (floor {LESION_BORDER_MM})")


PARTS = {"experts": experts, "years": years, "turned": turned}


def compared(first: Path, second: Path, scratch: Path) -> tuple[Comparison, Array]:
    """What `compare` finds in two pairs of scans, and its changed voxels as a mask."""
    out = scratch / "compared" / f"{first.name}_{second.name}"
    result = compare(segmented(first, scratch), segmented(second, scratch), out, threads=2)
    states = nifti.read_labels(out / CHANGES_FILE, values=range(len(STATES))).data
    return result, (states > 0) & (states != STABLE)


def segmented(home: Path, scratch: Path, alignment: Mode = "auto") -> Path:
    folder = scratch / "runs" / home.name
    if not (folder / "run.json").is_file():
        settings = SegmentSettings(alignment=alignment, threads=2)
        t1 = find_image(home, "T1")
        segment(home / "FLAIR.nii.gz", t1, settings=settings).save(folder)
    return folder


def as_seen(mask: Volume) -> Volume:
    return mask.with_data(mask.data.astype(np.float32))


def onto(mask: Volume, result: Comparison) -> Array:
    grid = result.midspace.grid
    on_grid: Array = (resample_onto(mask.canonical(), grid).data >= 0.5) & grid.data
    return drop_small(on_grid, voxel_mm3=grid.voxel_mm3, smallest_mm3=LEAST_MM3)


def alone(mask: Array, other: Array) -> Array:
    """The lesions of a mask that do not meet the other."""
    labels, count = find_lesions(mask)
    met = np.bincount(labels[other & mask], minlength=count + 1) > 0
    met[0] = True
    lonely: Array = ~met[labels]
    return lonely


def volumes(result: Comparison) -> dict[str, str]:
    changes = result.changes
    return {
        "mL": f"{changes.baseline_ml:.2f}, {changes.followup_ml:.2f}",
        "change, mL": f"{changes.change_ml:+.2f}",
        "floor, mL": f"{changes.floor_ml:.2f}",
    }


def scores(truth: Array, perhaps: Array, found: Array, result: Comparison) -> dict[str, str]:
    """Recall of lesions of `truth`; a change of ours that meets `perhaps` is not false."""
    changes = result.changes
    labels, count = find_lesions(truth)
    flair_change = scipy.ndimage.mean(
        result.times[1].flair - result.times[0].flair, labels, range(1, count + 1)
    )
    sizes_mm3 = np.bincount(labels.ravel())[1:] * result.midspace.grid.voxel_mm3
    met = np.bincount(labels[found], minlength=count + 1)[1:] > 0
    is_visible = np.abs(flair_change) >= BORDER_EVIDENCE
    touched = set(np.unique(changes.numbers[perhaps]).tolist())
    ours = [c for c in changes.lesions if c.state != "stable"]
    once = [c for c in changes.lesions if not (c.baseline_ml and c.followup_ml)]

    def recall(which: Array) -> str:
        return f"{(met & which).sum()}/{which.sum()}"

    return {
        "recall": recall(sizes_mm3 > 0),
        "visible": recall(is_visible),
        "visible, 50 mm3 up": recall(is_visible & (sizes_mm3 >= 50)),
        "our changes": str(len(ours)),
        "false": str(sum(c.id not in touched for c in ours)),
        "false, mL": f"{sum(abs(c.change_ml) for c in ours if c.id not in touched):.2f}",
        "false by masks alone": f"{sum(c.id not in touched for c in once)}/{len(once)}",
        **{state: str(n) for state, n in changes.counts.items()},
    }


def random_motion(flair: Volume, rng: np.random.Generator) -> Array:
    """World to world: about the centre of the scan."""
    centre = flair.affine @ [*((np.array(flair.data.shape) - 1) / 2), 1]
    axis = rng.normal(size=3)
    angle = np.radians(rng.uniform(*DEGREES))
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
    motion[:3, 3] = centre[:3] - motion[:3, :3] @ centre[:3] + rng.uniform(-MM, MM, size=3)
    return motion


def turn(home: Path, motion: Array, twin: Path) -> None:
    """The FLAIR on its own grid, its content moved; the T1's voxels stay, its affine moves."""
    twin.mkdir(parents=True, exist_ok=True)
    flair, t1 = nifti.read(home / "FLAIR.nii.gz"), find_image(home, "T1")
    back = np.linalg.inv(flair.affine) @ np.linalg.inv(motion) @ flair.affine
    moved = scipy.ndimage.affine_transform(flair.data.astype(np.float32), back, order=3)
    nifti.write(twin / "FLAIR.nii.gz", flair.with_data(np.maximum(moved, 0)))
    if t1 is not None:
        moved_t1 = nifti.read(t1)
        moved_t1 = replace(moved_t1, affine=motion @ moved_t1.affine, header=None)
        nifti.write(twin / "T1.nii.gz", moved_t1)


if __name__ == "__main__":
    main()
