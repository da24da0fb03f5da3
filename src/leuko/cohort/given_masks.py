"""Masks made elsewhere, found by a pattern for each subject of a cohort."""

from dataclasses import replace
from glob import glob
from pathlib import Path

from leuko.cohort.job import Job
from leuko.errors import LeukoError


def with_mask(job: Job, pattern: str, **subject: str) -> Job:
    """The job with the mask of its subject; with a problem unless exactly one file matches.

    `pattern` is a path such as "lst/{id}/*_mask.nii.gz", in which `subject` fills the fields in
    braces. Raises LeukoError for an unknown field.
    """
    try:
        path = pattern.format(**subject)
    except (KeyError, IndexError, ValueError) as error:
        fields = " and ".join(f"{{{name}}}" for name in subject)
        raise LeukoError(
            f"the pattern {pattern} is not valid; expected only the fields {fields}"
        ) from error
    found = sorted(glob(path, recursive=True))  # noqa: PTH207, the pattern may be absolute
    if len(found) == 1:
        return replace(job, given=Path(found[0]).absolute())
    if found:
        problem = f"{len(found)} masks match {path}, such as {found[0]}; expected one"
    else:
        problem = f"no mask matches {path}; check the pattern"
    return replace(job, problem=job.problem or problem)
