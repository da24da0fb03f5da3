"""Masks made elsewhere, found by a pattern for each subject of a cohort."""

from dataclasses import replace
from glob import glob
from pathlib import Path
from string import Formatter

from leuko.cohort.job import Job
from leuko.errors import LeukoError


def with_mask(job: Job, pattern: str, **subject: str) -> Job:
    """The job with the mask of its subject; with a problem unless exactly one file matches.

    `pattern` is a path such as "lst/{id}/*_mask.nii.gz", in which `subject` fills the fields in
    braces. Raises LeukoError for an unknown field, and for a pattern without a field.
    """
    fields = [f"{{{name}}}" for name in subject]
    try:
        path = pattern.format(**subject)
        is_same = not any(name for _, name, *_ in Formatter().parse(pattern))
    except (KeyError, IndexError, ValueError) as error:
        raise LeukoError(
            f"the pattern {pattern} is not valid; expected only the fields {' and '.join(fields)}"
        ) from error
    if is_same:
        raise LeukoError(
            f"{pattern} names one mask for all subjects; put {' or '.join(fields)} in it"
        )
    found = sorted(glob(path, recursive=True))  # noqa: PTH207, the pattern may be absolute
    if len(found) == 1:
        return replace(job, given=Path(found[0]).absolute())
    if found:
        problem = f"{len(found)} masks match {path}, such as {found[0]}; expected one"
    else:
        problem = f"no mask matches {path}; check the pattern"
    return replace(job, problem=job.problem or problem)
