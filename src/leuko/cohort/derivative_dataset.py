"""The files at the root of a dataset of derivatives."""

import json
from pathlib import Path

from leuko import __version__
from leuko.cohort.derivatives import IGNORED
from leuko.errors import LeukoError
from leuko.io.files import read_json, replace_text, require_writable

VERSION = "1.10.0"  # of BIDS

README = """White matter hyperintensities, found by Leuko in the FLAIR and T1w images of a dataset.

Images lie on the grid of the FLAIR (space-FLAIR). label-WMH_mask is the segmentation,
label-WMH_probseg its probability; the reports (label-WMH_report.html) show them. The level "group"
writes wmh.tsv, which has a row for each FLAIR; each file in phenotype holds the same with one row
per participant. sub-*/longitudinal compares sessions. For research; not a medical device.
"""


def start_dataset(out: Path, source: Path) -> None:
    """Make `out` a derivative dataset of `source`, unless it already is one.

    Raises LeukoError if it is the source, holds subjects that are not Leuko's, is a dataset of
    another program, or cannot be written.
    """
    if out.resolve() == source.resolve():
        raise LeukoError(
            f"{out} is the dataset itself; choose another output folder, such as "
            f"{source / 'derivatives' / 'leuko'}"
        )
    require_writable(out)
    about = out / "dataset_description.json"
    before = read_json(about, what="description") if about.exists() else None
    if before is not None:
        makers = before.get("GeneratedBy") or [{}]
        if [maker.get("Name") for maker in makers] != ["Leuko"]:
            raise LeukoError(f"{out} is a dataset of another program; choose another output folder")
    elif any(out.glob("sub-*")):
        raise LeukoError(
            f"{out} holds sub-* folders that Leuko did not write; choose another output folder"
        )
    link = source.resolve().as_uri()
    description = {
        "Name": "Leuko: white matter hyperintensities",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "Leuko", "Version": __version__}],
        "SourceDatasets": [{"URL": link}],
        "DatasetLinks": {"raw": link},
    }
    if before == description:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(about, json.dumps(description, indent=2) + "\n")
        replace_text(out / ".bidsignore", "".join(f"{line}\n" for line in IGNORED))
        replace_text(out / "README", README)
    except OSError as error:
        raise LeukoError(f"cannot write into {out}: {error.strerror}") from error
