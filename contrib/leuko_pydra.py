"""Pydra 1.0 task of `leuko segment`.

Copy this file beside your workflow: `Segment(flair="FLAIR.nii.gz", t1="T1.nii.gz")()`.
"""

from pathlib import Path
from typing import Any

from fileformats.generic import Directory, File
from pydra.compose import shell

OUT = "leuko"  # folder of the results, in the folder of the task
# File name of each output; not every run writes rims_mask, tissue and regions.
FILES = {
    "results": ".",
    "mask": "wmh.nii.gz",
    "probability": "wmh_prob.nii.gz",
    "tissue": "tissue.nii.gz",
    "rims_mask": "wmh_rims.nii.gz",
    "lesion_labels": "wmh_lesions.nii.gz",
    "lesions": "lesions.tsv",
    "regions": "wmh_regions.nii.gz",
    "report": "report.html",
    "record": "run.json",
}


def written(field: Any, cache_dir: Path) -> Path | None:
    """The file of an output; None if it was not written. Pydra passes the arguments."""
    path = Path(cache_dir) / OUT / FILES[field.name]
    return path if path.exists() else None


@shell.define
class Segment(shell.Task["Segment.Outputs"]):
    """Segment the white matter hyperintensities of one brain; `append_args` takes more options."""

    executable = ("leuko", "segment", "-o", OUT)

    flair: File = shell.arg(argstr="--flair", help="FLAIR")
    t1: File | None = shell.arg(argstr="--t1", default=None, help="T1 of the same brain")
    model: str | None = shell.arg(argstr="--model", default=None, help="a model's name or folder")
    exclude: File | None = shell.arg(
        argstr="--exclude", default=None, help="mask of voxels that are never WMH"
    )
    rims: str | None = shell.arg(
        argstr="--rims",
        default=None,
        allowed_values=["separate", "include", "exclude"],
        help="caps and rims",
    )
    strict: bool = shell.arg(
        argstr="--strict", default=False, help="refuse a scan that does not look like a FLAIR"
    )
    threads: int = shell.arg(argstr="--threads", default=1, help="processors to use")

    class Outputs(shell.Outputs):
        """Files of the result, on the grid of the FLAIR."""

        results: Directory = shell.out(callable=written, help="folder of all files")
        mask: File = shell.out(callable=written, help="1 = WMH")
        probability: File = shell.out(callable=written, help="probability of WMH")
        tissue: File | None = shell.out(callable=written, help="tissue classes")
        rims_mask: File | None = shell.out(callable=written, help="caps and rims of the ventricles")
        lesion_labels: File = shell.out(callable=written, help="lesion number of each WMH voxel")
        lesions: File = shell.out(callable=written, help="table of lesions")
        regions: File | None = shell.out(callable=written, help="region of each WMH voxel")
        report: File = shell.out(callable=written, help="page for checking the result")
        record: File = shell.out(callable=written, help="all numbers and settings")
