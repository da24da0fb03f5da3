"""The command view: look at results closely and correct masks."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def view(
    out: Annotated[Path, typer.Argument(help="Output folder of leuko segment, batch or bids.")],
    flair: Annotated[
        Path | None, typer.Option(help="The FLAIR, if it was moved after segmentation.")
    ] = None,
    t1: Annotated[
        Path | None, typer.Option(help="The T1, if it was moved after segmentation.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page; 0: any free port.")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Look at a result closely and correct its mask.

    Opens a page on this machine. A corrected mask is saved as wmh_edited.nii.gz, its numbers and
    report in the folder edited (in BIDS derivatives beside the mask, as desc-edited); the automatic
    mask never changes. Ends when the page is closed.
    """
    from leuko.view.editing import find_results
    from leuko.view.server import Viewer

    results = find_results(out, flair=flair, t1=t1)
    if len(results) == 1:
        results[0].scan("flair")  # an error is told here rather than on the page
    viewer = Viewer(results, out, port=port)
    try:
        print(f"page        {viewer.address}", flush=True)
        print("close the page or press Ctrl-C to end", flush=True)
        if browser:
            webbrowser.open(viewer.address)
        viewer.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        viewer.finish()
