"""The plan of the house: imports point down, and the light rooms stay light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import leuko

SOURCE = Path(leuko.__file__).parent
LAYERS = (
    {"cli"},
    {"cli_challenge"},
    {"cli_cohort", "cli_compare", "cli_models"},
    {"cli_train"},
    {"cli_options"},
    {"terminal", "demo"},
    {"challenge", "folds", "compare", "group", "cohort"},
    {"train", "folds_report"},
    {"validation"},
    {"plan", "board"},
    {"batches", "lineage", "batchnorm", "settings"},
    {"cohort_report", "subject", "held_out"},
    {"segment", "evaluate", "augment", "losses", "isolate", "derivatives", "summary", "rehearsal"},
    {"outputs", "change_report"},
    {"predict", "delineate", "report", "changes"},
    {"analysis", "frame"},
    {"panes", "verdicts"},
    {"regions", "halfway", "brain"},
    {"runtime", "dataset", "synthesis", "inputs"},
    {"align", "export", "pathology", "scanner", "sampling"},
    {
        "metrics",
        "imagenet",
        "weights",
        "rounding",
        "anatomy",
        "dicom",
        "dicom_seg",
        "mni",
        "figures",
        "bids",
    },
    {
        "nifti",
        "dicom_slices",
        "itk",
        "guards",
        "channels",
        "lesions",
        "network",
        "mni152",
        "uncertainty",
        "conformal",
        "bids_names",
    },
    {"background", "masks"},
    {"volume", "files", "recipes", "fields", "pairs", "parallel"},
    {"extras", "printing"},
    {"record"},
    {"errors"},
)
ONLY_IN = {
    "nibabel": {"nifti"},
    "diplib": {"channels"},
    "typer": {path.stem for path in SOURCE.glob("cli*.py")},
    "rich": {"terminal"},
    "onnx": {"export"},
    "onnxruntime": {"export", "runtime"},
    "safetensors": {"export", "imagenet", "train"},
    "SimpleITK": {"itk", "align"},
    "pydicom": {"dicom_slices", "dicom_seg"},
    "highdicom": {"dicom_seg"},
    "platformdirs": {"weights"},
    "nilearn": {"mni152"},
    "lightning_fabric": {"parallel", "train"},
    "tensorboard": {"board"},
    "matplotlib": {"figures", "report"},
    "distributed": {"cohort"},
    "psutil": {"isolate"},
    "PIL": {"panes"},
}
TORCH = {
    "network", "imagenet", "losses", "augment", "train", "runtime", "export", "anatomy",
    "pathology", "sampling", "scanner", "fields", "synthesis", "batches", "board", "plan",
    "parallel", "rehearsal", "folds", "batchnorm", "rounding",
}  # fmt: skip
HEAVY = ("numpy", "scipy", "nibabel", "diplib", "matplotlib", "onnxruntime", "torch", "rich")


def modules():
    return sorted(path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__")


def imports(module, *, at_top=False):
    """The modules that one imports; `at_top` leaves out what functions import later."""
    tree = ast.parse((SOURCE / f"{module}.py").read_text())
    found = set()
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def level(module):
    return next(n for n, layer in enumerate(LAYERS) if module in layer)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    used = {name.split(".")[1] for name in imports(module) if name.startswith("leuko.")}
    for other in used & set(modules()):
        assert level(other) > level(module), f"{module} imports {other}"


def test_every_module_has_its_layer():
    assert set(modules()) == set().union(*LAYERS)


@pytest.mark.parametrize(("library", "rooms"), [*ONLY_IN.items(), ("torch", TORCH)])
def test_a_library_stays_in_its_room(library, rooms):
    users = {m for m in modules() if library in {name.split(".")[0] for name in imports(m)}}
    assert users <= rooms


def test_no_module_is_giant():
    for module in modules():
        assert len((SOURCE / f"{module}.py").read_text().splitlines()) <= 400, module


@pytest.mark.parametrize("module", modules())
def test_a_module_opens_with_what_it_is(module):
    assert ast.get_docstring(ast.parse((SOURCE / f"{module}.py").read_text()))


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


def test_measuring_and_preparing_work_without_torch(heads):
    labels = heads / "head0" / "wmh.nii.gz"
    printed = python(
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from leuko import channels, dataset, figures, nifti, runtime, segment\n"
        "from leuko.cli import main\n"
        f"head = Path({str(labels.parent)!r})\n"
        "scans = (nifti.read(head / f'{name}.nii.gz') for name in ('FLAIR', 'T1'))\n"
        "slices, placement = channels.prepare(*scans, channels.Preparation(pixel_mm=3))\n"
        "print('prepared', placement.restore(slices[..., 1]).shape)\n"
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
