"""The structure of the package: imports point down, heavy libraries have one place each."""

import ast
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import leuko
from phantoms import SMALL_MODEL

SOURCE = Path(leuko.__file__).parent
# From the top down: a package imports those below it, and its own modules without a circle.
ORDER = (
    "cli",
    "view",
    "longitudinal",
    "cohort training",
    "segment",
    "results",
    "report",
    "evaluation",
    "lesions",
    "model synthesis",
    "preprocessing",
    "io",
    "volume",
    "errors",
)
ONLY_IN = {
    "nibabel": {"io.nifti"},
    "diplib": {"preprocessing.slices"},
    "typer": {"cli"},
    "archspec": {"cli.info"},
    "rich": {"cli.text"},
    "onnx": {"model.onnx_export"},
    "onnxruntime": {"model.onnx_export", "model.runtime"},
    "safetensors": {"model.onnx_export", "model.imagenet", "training.storage"},
    "SimpleITK": {"preprocessing.simpleitk", "preprocessing.registration"},
    "pydicom": {"io.dicom_slices", "io.dicom_seg"},
    "highdicom": {"io.dicom_seg"},
    "msgspec": {"io.record"},
    "platformdirs": {"model.weights"},
    "nilearn": {"synthesis.mni152"},
    "lightning_fabric": {"training.processes", "training.loop"},
    "tensorboard": {"training.tensorboard_log"},
    "distributed": {"cohort.executor"},
    "psutil": {"cli.info", "cohort.worker"},
    "PIL": {"report.viewer", "report.pictures", "report.single"},
    "torch": {
        "cli.info",
        "model.network",
        "model.imagenet",
        "model.runtime",
        "model.onnx_export",
        "model.quantisation",
        "synthesis",
        "training",
    },
}
HEAVY = (
    "numpy", "scipy", "nibabel", "diplib", "PIL", "msgspec", "onnxruntime", "torch", "rich",
)  # fmt: skip
SEGMENT_LOADS = {
    "diplib", "msgspec", "nibabel", "numpy", "onnxruntime", "pillow", "platformdirs", "scipy",
    "simpleitk", "typer",
}  # fmt: skip
ROOT = {"__init__.py", "errors.py", "volume.py", "segment.py", "results.py", "py.typed"}


def modules():
    """As "io.nifti"; a package by its own name."""
    paths = sorted(SOURCE.rglob("*.py"))
    return [name_of(path) for path in paths if path != SOURCE / "__init__.py"]


def name_of(path):
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def tree(module):
    path = SOURCE.joinpath(*module.split("."))
    return ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )


def imports(module):
    """The full names of what a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def used(module):
    """The modules of Leuko that one imports."""
    names = {name.removeprefix("leuko.") for name in imports(module) if name.startswith("leuko.")}
    return (names & set(modules())) - {module}


def level(module):
    return next(n for n, names in enumerate(ORDER) if module.split(".")[0] in names.split())


def test_the_root_holds_packages_and_little_else():
    files = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert files == ROOT
    packages = {module.split(".")[0] for module in modules()} - {Path(name).stem for name in ROOT}
    assert packages < set(" ".join(ORDER).split())


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    package = module.split(".")[0]
    for other in used(module):
        if other.split(".")[0] != package:
            assert level(other) > level(module), f"{module} imports {other}"


def test_no_imports_run_in_a_circle():
    left = {module: used(module) for module in modules()}
    while left:
        free = {module for module, others in left.items() if not others & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in free}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_place(library):
    users = {m for m in modules() if library in {name.split(".")[0] for name in imports(m)}}
    places = ONLY_IN[library]
    assert {m for m in users if not {m, m.split(".")[0]} & places} == set()


def test_no_module_is_giant():
    for module in modules():
        path = SOURCE.joinpath(*module.split("."))
        if path.with_suffix(".py").is_file():
            assert len(path.with_suffix(".py").read_text().splitlines()) <= 400, module


@pytest.mark.parametrize("module", modules())
def test_a_module_opens_with_what_it_is(module):
    assert ast.get_docstring(tree(module))


def python(code):
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_help_loads_nothing_heavy():
    loaded = python(
        "import sys\n"
        "from leuko.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert loaded.splitlines()[-1] == "LOADED []"


def test_segmenting_loads_only_the_libraries_that_it_needs(heads, tmp_path):
    head = heads / "head0"
    arguments = ["segment", "-o", tmp_path / "out", "--model", SMALL_MODEL]
    arguments += ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    printed = python(
        "import sys\n"
        "from leuko.cli import main\n"
        f"try:\n    main({list(map(str, arguments))})\nexcept SystemExit:\n    pass\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    declared = {re.split(r"[^\w-]", needed)[0].lower() for needed in metadata.requires("leuko")}
    providers = metadata.packages_distributions()
    loaded = {
        library.lower()
        for name in printed.splitlines()[-1].split()
        for library in providers.get(name, ())
    }
    # nibabel loads pydicom, and pydicom its decoders, where they are installed.
    assert (loaded & declared) - {"pydicom", "python-gdcm"} <= SEGMENT_LOADS


@pytest.mark.parametrize("module", ["evaluation.evaluate", "cohort.gather"])
def test_evaluating_and_gathering_load_no_image_processing(module):
    libraries = ("SimpleITK", "diplib", "onnxruntime", "psutil", "torch")
    code = f"import sys, leuko.{module}\nprint([n for n in {libraries} if n in sys.modules])"
    assert python(code) == "[]\n"


def test_measuring_and_preparing_work_without_torch(heads):
    labels = heads / "head0" / "wmh.nii.gz"
    printed = python(
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "import leuko.segment\n"
        "from leuko.cli import main\n"
        "from leuko.io import nifti\n"
        "from leuko.preprocessing.slices import Preparation, prepare\n"
        f"head = Path({str(labels.parent)!r})\n"
        "scans = (nifti.read(head / f'{name}.nii.gz') for name in ('FLAIR', 'T1'))\n"
        "slices, placement = prepare(*scans, Preparation(pixel_mm=3))\n"
        "stack = np.moveaxis(placement.to_scan(slices[..., 1]), 0, placement.across)\n"
        "print('prepared', stack.shape)\n"
        f"main(['evaluate', {str(labels)!r}, {str(labels)!r}])"
    )
    assert "prepared (48, 56, 12)" in printed
    assert "Dice (DSC)" in printed


def test_training_without_torch_says_what_to_install(heads, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from leuko.cli import main\n"
        f"main(['train', {str(heads)!r}, '-o', {str(tmp_path / 'run')!r}])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert 'pip install "leuko[train]"' in process.stderr
