"""Every command where libraries are missing: it works, or says in one line which extra it needs.

python tests/without_extras.py                  as this Python is installed
python tests/without_extras.py psutil ...       as if these libraries were not installed
"""

import _thread
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

COHORT = ("distributed", "psutil")
TRAINING = ("torch", "lightning_fabric", "safetensors", "onnx", "tensorboard")


def commands(home: Path) -> Iterator[tuple[list[object], tuple[str, ...], str]]:
    """Arguments, the libraries that they need, and the extra that brings these."""
    head, out = home / "head", home / "out"
    scans = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    small = ["--model", Path(__file__).with_name("small_model")]
    segment = ["segment", *scans, *small, "--threads", 1]
    yield ["--help"], (), ""
    yield ["--version"], (), ""
    yield [*segment, "-o", out], (), ""
    yield [*segment, "-o", home / "gpu", "--device", "mps"], ("torch",), "train"
    yield ["segment", "--study", home, "-o", home / "dicom"], ("pydicom", "highdicom"), "dicom"
    given = ["measure", head / "wmh.nii.gz", *scans, *small, "--threads", 1]
    yield [*given, "-o", home / "measured"], (), ""
    yield ["info"], (), ""
    yield ["evaluate", head / "wmh.nii.gz", out / "wmh.nii.gz"], (), ""
    yield ["view", out, "--no-browser"], (), ""
    yield ["compare", out, out, "-o", home / "changes", "--threads", 1], (), ""
    yield ["demo", "-o", home / "demo", "--threads", 1], ("nilearn",), "demo"
    yield ["models", "list"], (), ""
    yield ["models", "path", "leuko-base"], (), ""
    yield ["models", "verify"], (), ""
    yield ["models", "pull", home / "model.zip"], (), ""
    yield ["batch", home / "pairs.tsv", "-o", home / "batch"], COHORT, "cohort"
    bids = ["bids", home / "bids", home / "derivatives"]
    yield [*bids, "participant", "--flair-alone"], COHORT, "cohort"
    yield [*bids, "longitudinal"], COHORT, "cohort"
    yield [*bids, "group"], (), ""
    yield ["challenge", "--input", home / "scan", "--output", home / "result", *small], (), ""
    score = ["challenge-score", home / "challenge", "-o", home / "scores"]
    yield score, COHORT, "cohort"
    yield [*score, "--results", home / "challenge"], (), ""
    yield ["train", home, "-o", home / "run"], TRAINING, "train"
    yield ["train", "--resume", home / "run"], TRAINING, "train"
    yield ["export", home / "run", "-o", home / "small"], TRAINING, "train"
    yield ["synth", "-o", home / "synth"], ("torch", "nilearn"), "train"


def prepare(home: Path) -> None:
    """What the commands take: a made-up head in every layout, a table, a model."""
    from leuko.model.weights import find
    from phantoms import make_phantom

    head = home / "head"
    shape, spacing_mm = (90, 110, 18), (1.9, 1.9, 7.0)
    make_phantom(np.random.default_rng(0), shape=shape, spacing_mm=spacing_mm).write(head)
    (home / "pairs.tsv").write_text("id\tflair\na\thead/FLAIR.nii.gz\n")
    model = shutil.copytree(find("leuko-base"), home / "copied" / "other")
    card = json.loads((model / "card.json").read_text())
    (model / "card.json").write_text(json.dumps(card | {"name": "other"}))
    shutil.make_archive(str(home / "model"), "zip", home / "copied")
    scan = home / "challenge" / "test" / "Utrecht" / "3"
    for folder in (home / "scan", scan):
        shutil.copytree(head, folder / "pre")
        (folder / "pre" / "wmh.nii.gz").unlink()
    for name in ("wmh", "result"):
        shutil.copy(head / "wmh.nii.gz", scan / f"{name}.nii.gz")
    anat = home / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    shutil.copy(head / "FLAIR.nii.gz", anat / "sub-01_FLAIR.nii.gz")


def answer(arguments: list[object]) -> tuple[int, str]:
    """The exit code of a command and what it said on stderr."""
    from leuko.cli import main

    said = io.StringIO()
    interrupt = threading.Timer(3, _thread.interrupt_main)
    if arguments[0] == "view":  # serves until it is interrupted
        interrupt.start()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        finally:
            interrupt.cancel()  # else it would interrupt the next command
    return 0, said.getvalue()


def faults(home: Path) -> Iterator[str]:
    """What is wrong with the answers, a line each."""
    prepare(home)
    for arguments, libraries, extra in commands(home):
        lacks = any(find_spec(name) is None for name in libraries)
        if libraries and not lacks:
            continue  # other tests run it
        command = " ".join(map(str, arguments))
        if arguments[-1] == "group":
            records = home / "derivatives" / "sub-01" / "anat"
            records.mkdir(parents=True)
            name = "sub-01_space-FLAIR_label-WMH_stats.json"
            shutil.copy(home / "out" / "run.json", records / name)
        try:
            code, said = answer(arguments)
        except Exception as error:  # noqa: BLE001, whatever it is would be a traceback
            yield f"{command}: {type(error).__name__}: {error}"
            continue
        if lacks and (code != 2 or f'pip install "leuko[{extra}]"' not in said):
            yield f"{command}: exit code {code} instead of the advice to install {extra}: {said}"
        if not lacks and code not in (0, 3):
            yield f"{command}: exit code {code}: {said}"
    for name in sorted({str(arguments[0]) for arguments, _, _ in commands(home)}):
        code, said = answer([name, "--help"])
        if code:
            yield f"{name} --help: exit code {code}: {said}"


if __name__ == "__main__":
    for hidden in sys.argv[1:]:
        sys.modules[hidden] = None  # type: ignore[assignment]
    with TemporaryDirectory() as folder:
        os.environ["LEUKO_CACHE"] = str(Path(folder, "cache"))
        sys.exit("\n".join(faults(Path(folder))) or None)
