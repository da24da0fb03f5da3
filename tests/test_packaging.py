"""What others run Leuko by: the container's entry point, and the Boutiques descriptors."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DESCRIPTOR = ROOT / "docs" / "boutiques.json"


def bosh(*arguments):
    return subprocess.run(
        [Path(sys.executable).with_name("bosh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_descriptors_are_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "make_boutiques.py"))["texts"]()
    written = {path.name: path.read_text() for path in (ROOT / "docs").glob("boutiques*.json")}
    assert made == written, "run python docs/make_boutiques.py"


@pytest.mark.parametrize("name", ["boutiques.json", "boutiques-segment.json"])
def test_a_descriptor_is_valid(name):
    told = bosh("validate", ROOT / "docs" / name)
    assert (told.returncode, told.stdout.strip()) == (0, "OK"), told.stderr


def test_the_command_that_it_makes_is_understood(leuko, tmp_path):
    invocation = {
        "bids_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "analysis_level": "participant",
        "participant_label": ["01", "03"],
        "flair_alone": True,
        "mem_gb": 3.5,
        "align": "never",
    }
    (tmp_path / "invocation.json").write_text(json.dumps(invocation))
    told = bosh("exec", "simulate", DESCRIPTOR, "-i", tmp_path / "invocation.json")
    (line,) = re.findall("^leuko bids .*", told.stdout, re.MULTILINE)
    assert "--participant-label 01 03" in line
    code, _, said = leuko(*shlex.split(line)[1:])
    assert code == 2
    assert "holds no sub-* folder" in said  # so far it was understood


@pytest.mark.linux
@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["segment", "--help"], "segment --help"),
        (["--version"], "--version"),
        (["/data", "/out", "participant"], "bids /data /out participant"),
        (["data/", "out", "participant"], "bids data/ out participant"),
        (["challenge"], "challenge"),
        (["/bin/echo", "-n", "as a workflow engine does"], "as a workflow engine does"),
    ],
)
def test_the_entry_point_takes_a_path_for_a_bids_app(tmp_path, arguments, run):
    (tmp_path / "leuko").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "leuko").chmod(0o755)
    told = subprocess.run(
        ["/bin/sh", ROOT / "docs" / "entrypoint.sh", *arguments],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == run


def test_all_that_the_image_is_built_of_is_sent_to_the_builder():
    copies = re.findall(r"^COPY ([^-].*) /", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copies for source in line.split()}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)
