"""Nipype interface of `leuko segment`.

Copy this file beside your workflow: `Segment(flair="FLAIR.nii.gz", t1="T1.nii.gz").run()`.
"""

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    CommandLine,
    CommandLineInputSpec,
    Directory,
    File,
    TraitedSpec,
    traits,
)

# File name of each output; not every run writes rims_mask, tissue and regions.
FILES = {
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


class SegmentInputs(CommandLineInputSpec):
    """Options of the command; `args` takes any other."""

    flair = File(exists=True, mandatory=True, argstr="--flair %s", desc="FLAIR")
    t1 = File(exists=True, argstr="--t1 %s", desc="T1 of the same brain")
    out = traits.Str("leuko", usedefault=True, argstr="-o %s", desc="folder of the results")
    model = traits.Str(argstr="--model %s", desc="name or folder of a model")
    exclude = File(exists=True, argstr="--exclude %s", desc="mask of voxels that are never WMH")
    rims = traits.Enum("separate", "include", "exclude", argstr="--rims %s", desc="caps and rims")
    strict = traits.Bool(argstr="--strict", desc="refuse a scan that does not look like a FLAIR")
    num_threads = traits.Int(1, usedefault=True, nohash=True, argstr="--threads %d")


class SegmentOutputs(TraitedSpec):
    """Files of the result, on the grid of the FLAIR."""

    results = Directory(exists=True, desc="folder of all files")
    mask = File(exists=True, desc="1 = WMH")
    probability = File(exists=True, desc="probability of WMH")
    tissue = File(exists=True, desc="tissue classes")
    rims_mask = File(exists=True, desc="normal caps and rims of the ventricles")
    lesion_labels = File(exists=True, desc="number of the lesion of each WMH voxel")
    lesions = File(exists=True, desc="table of lesions")
    regions = File(exists=True, desc="number of the region of each WMH voxel")
    report = File(exists=True, desc="page for checking the result")
    record = File(exists=True, desc="all numbers and settings")


class Segment(CommandLine):
    """Segment the white matter hyperintensities of one brain."""

    _cmd = "leuko segment"
    input_spec = SegmentInputs
    output_spec = SegmentOutputs

    def _run_interface(self, runtime: Any, correct_return_codes: tuple[int, ...] = (0,)) -> Any:
        """Fail on any other exit code; Nipype alone would list the files of an earlier run."""
        runtime = super()._run_interface(runtime, correct_return_codes)
        if runtime.returncode not in correct_return_codes:
            self.raise_exception(runtime)
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        out = Path(self.inputs.out).absolute()
        files = {output: str(out / name) for output, name in FILES.items()}
        there = {output: path for output, path in files.items() if Path(path).is_file()}
        return {**self.output_spec().get(), "results": str(out), **there}
