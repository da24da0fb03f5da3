"""The interfaces in contrib/ and the descriptor of `leuko segment` do what the command does."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from leuko.io.outputs import FILES, MASK_FILE
from phantoms import SMALL_MODEL, make_phantom

ROOT = Path(__file__).parents[1]
CONTRIB = ROOT / "contrib"
MODULE = CONTRIB / "nextflow" / "leuko" / "segment"
DESCRIPTOR = ROOT / "docs" / "boutiques-segment.json"

NIPYPE = """
from leuko_nipype import Segment
found = Segment(flair=flair, t1=t1, model=model).run().outputs.get()
print(json.dumps(found))
"""
PYDRA = """
from leuko_pydra import Segment
found = Segment(flair=flair, t1=t1, model=model)(cache_root="cache")
names = [one["id"] for one in json.loads(pathlib.Path(descriptor).read_text())["output-files"]]
print(json.dumps({name: str(getattr(found, name)) for name in names}))
"""
STYX = """
from styx.backend.python import to_python
from styx.frontend.boutiques import from_boutiques
from styxdefs import LocalRunner, set_global_runner
tool = json.loads(pathlib.Path(descriptor).read_text())
for code, (*folders, name) in to_python([from_boutiques(tool, "made")]):
    pathlib.Path(*folders).mkdir(exist_ok=True)
    pathlib.Path(*folders, f"{name}.py").write_text(code)
sys.path.insert(0, ".")
from made.leuko_segment import leuko_segment
set_global_runner(LocalRunner())
found = leuko_segment(out="leuko", flair=flair, t1=t1, model=model, threads=1)._asdict()
del found["root"]
print(json.dumps({name: str(path) for name, path in found.items()}))
"""


def run(command, folder):
    """Run a command in a folder, which is also its home; give back what it printed."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    told = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=os.environ | {"PATH": here, "HOME": str(folder), "NO_ET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def by_python(code):
    """The outputs that a script of Python prints last."""

    def outputs(head, folder):
        start = [
            "import json, pathlib, sys",
            "flair, t1, model, descriptor, contrib = sys.argv[1:]",
            "sys.path.insert(0, contrib)",
        ]
        scans = head / "FLAIR.nii.gz", head / "T1.nii.gz"
        script = "\n".join([*start, code])
        told = run([sys.executable, "-c", script, *scans, SMALL_MODEL, DESCRIPTOR, CONTRIB], folder)
        found = json.loads(told.splitlines()[-1])
        return {name: folder / path for name, path in found.items()}

    return outputs


def by_snakemake(head, folder):
    shutil.copytree(head, folder / "data" / "anna")
    given = [f"options=--model {SMALL_MODEL}", "out=made"]
    rules = CONTRIB / "leuko.smk"
    run(["snakemake", "-s", rules, "--cores", "1", "--config", *given], folder)
    named = re.search(r"^FILES = \{(.*?)\}", rules.read_text(), re.MULTILINE | re.DOTALL)[1]
    return {n: folder / "made" / "anna" / file for n, file in re.findall('"(.*)": "(.*)"', named)}


def module():
    """The text of the module for Nextflow."""
    return (MODULE / "main.nf").read_text()


def by_bash(head, folder):
    """What Nextflow would run, and the outputs that it would look for."""
    script = re.search(r'script:.*?"""(.*?)"""', module(), re.DOTALL)[1]
    values = {
        "flair": head / "FLAIR.nii.gz",
        "t1_option": f"--t1 {head / 'T1.nii.gz'}",
        "prefix": "anna",
        "task.cpus": "1",
        "task.process": "LEUKO_SEGMENT",
        "args": f"--model {SMALL_MODEL}",
    }
    for name, value in values.items():
        script = script.replace(f"${{{name}}}", str(value))
    script = textwrap.dedent(script).replace("\\\\", "\\").replace("\\$", "$")
    run(["bash", "-ue", "-c", script], folder)
    assert re.fullmatch(
        r'"LEUKO_SEGMENT":\n +leuko: [\d.]+\n', (folder / "versions.yml").read_text()
    )
    paths = re.findall(r'path\("\$\{prefix\}/(.*?)"\) *, emit: (\w+)', module())
    return {name: folder / "anna" / file for file, name in paths}


def needing(name, outputs, *, there):
    absent = pytest.mark.skipif(not there, reason=f"{name.upper()} NOT TESTED: it is not installed")
    return pytest.param(outputs, id=name, marks=absent)


ENGINES = [
    needing("nipype", by_python(NIPYPE), there=find_spec("nipype")),
    needing("pydra", by_python(PYDRA), there=find_spec("pydra")),
    needing("styx", by_python(STYX), there=find_spec("styx")),
    needing("snakemake", by_snakemake, there=shutil.which("snakemake")),
    needing("bash", by_bash, there=shutil.which("bash")),  # in place of Nextflow
]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    make_phantom(np.random.default_rng(0), shape=(64, 80, 18), spacing_mm=(2.7, 2.6, 7)).write(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def mask(head, tmp_path_factory):
    """The mask of the command, as bytes."""
    out = tmp_path_factory.mktemp("command")
    scans = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    run(["leuko", "segment", *scans, "--model", SMALL_MODEL, "-o", "leuko"], out)
    return (out / "leuko" / MASK_FILE).read_bytes()


def listed():
    """The outputs of the descriptor, by their ids."""
    outputs = json.loads(DESCRIPTOR.read_text())["output-files"]
    return {one["id"]: one["path-template"].removeprefix("[OUT]").strip("/") for one in outputs}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_makes_and_lists_what_the_command_makes(engine, head, mask, tmp_path):
    files = engine(head, tmp_path)
    assert files["mask"].read_bytes() == mask
    assert {name: path.name for name, path in files.items() if name != "results"}.items() <= (
        listed().items()
    )
    assert all(path.exists() for path in files.values())
    assert {"mask", "probability", "lesions", "report", "record"} <= set(files)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_fails_if_the_command_does(engine, head, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(head, broken)
    (broken / "FLAIR.nii.gz").write_text("no image")
    (tmp_path / "work").mkdir()
    with pytest.raises(
        AssertionError, match=r"cannot be read as an image|Error in rule leuko_segment"
    ):
        engine(broken, tmp_path / "work")


def test_all_that_the_descriptor_lists_is_a_file_of_a_result():
    assert set(listed().values()) <= {*FILES, ""}


def test_the_module_for_nextflow_describes_its_inputs_and_outputs():
    about = (MODULE / "meta.yml").read_text()
    inputs, outputs = about.split("\noutput:\n")
    assert re.findall(r"emit: (\w+)", module()) == re.findall(
        r"^  - (\w+):$", outputs, re.MULTILINE
    )
    assert re.findall(r'path[ (]"(.*?)"', module()) == re.findall(
        r"^      - (\S*\.\w+):$", outputs, re.MULTILINE
    )
    taken = re.search(r"input:\n\s+tuple (.*?) //", module())[1]
    named = re.findall(r"^    - (\w+):$", inputs.split("\ninput:\n")[1], re.MULTILINE)
    assert re.findall(r"\((\w+)\)", taken) == ["meta", *named]


@pytest.mark.parametrize("interface", sorted(CONTRIB.glob("*.py")), ids=lambda path: path.stem)
def test_an_interface_has_options_of_the_command(interface):
    flags = {one.get("command-line-flag") for one in json.loads(DESCRIPTOR.read_text())["inputs"]}
    named = set(re.findall(r'argstr="(--[\w-]+)', interface.read_text()))
    assert named
    assert named <= flags
