"""The command demo: segments a brain with known lesions and measures the result."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from leuko.cli.options import Threads
from leuko.cli.streams import interruptible, stages_shown
from leuko.cli.text import counted, measures_as_text
from leuko.errors import LeukoError
from leuko.io.provenance import exit_code


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New folder for the files of the demo.")
    ] = Path("leuko-demo"),
    threads: Threads = None,
) -> None:
    """Try Leuko on a brain with known lesions.

    Simulates a FLAIR and a T1 of the MNI152 brain with lesions, segments them with the bundled
    model, and compares the mask with the known lesions.
    """
    if out.exists():
        raise LeukoError(f"{out} exists already; delete it, or choose another folder with -o")
    import leuko
    from leuko.evaluation.evaluate import evaluate
    from leuko.io.outputs import MASK_FILE, REPORT_FILE, side_output
    from leuko.io.provenance import tell
    from leuko.synthesis.demo import make_subject

    with interruptible(f"interrupted; delete {out} before you run the demo again"), stages_shown():
        brain = make_subject(out / "brain")
        print(f"made    a brain with known lesions in {brain}")
        settings = leuko.SegmentSettings(threads=threads)
        result = leuko.segment(brain / "FLAIR.nii.gz", brain / "T1.nii.gz", settings=settings)
        result.save(out / "result")
    picture = out / "picture.png"
    with side_output(out, picture.name, partial(tell, result.findings)):
        _save_picture(picture, brain, out / "result" / "wmh.nii.gz")
    lesions = counted(len(result.analysis.lesions), "lesion")
    seconds = sum(result.seconds.values())
    print(f"found   {result.volume_ml:.2f} mL in {lesions} in {seconds:.1f} s")
    mask, report = (out / "result" / name for name in (MASK_FILE, REPORT_FILE))
    for what, path in {"mask": mask, "report": report, "picture": picture}.items():
        if path.is_file():
            print(f"{what:<8}{path}")
    print()
    print(measures_as_text(evaluate(brain / MASK_FILE, mask)))
    raise typer.Exit(exit_code(result.findings))


def _save_picture(path: Path, subject: Path, mask: Path) -> None:
    """Save a PNG of the slice with the largest WMH area: scans, mask and known lesions."""
    import numpy as np

    from leuko.io import nifti
    from leuko.preprocessing.slices import Preparation, prepare
    from leuko.report.pictures import method_steps

    flair, t1 = nifti.read(subject / "FLAIR.nii.gz"), nifti.read(subject / "T1.nii.gz")
    slices, placement = prepare(flair, t1, Preparation())
    found, known = (
        placement.slices(nifti.read_mask(path).canonical().data.astype(np.uint8)) > 0
        for path in (mask, subject / "wmh.nii.gz")
    )
    shown = int(found.sum(axis=(1, 2)).argmax())
    method_steps(slices[shown], found[shown], known[shown]).save(path)
