"""Scans stay on the machine: nothing connects unless it is asked to."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import leuko
from leuko.model import runtime
from phantoms import SMALL_MODEL

ROOT = Path(__file__).parents[1]
SOURCE = Path(leuko.__file__).parent
# What each module that can connect is for.
CONNECT = {
    "model/download.py": "leuko models pull",
    "model/weights.py": "reads the path in a file:// address",
    "model/imagenet.py": "leuko train, for pretrained weights",
    "cohort/executor.py": "dask, on this machine or at --scheduler",
    "view/server.py": "listens on this machine",
    "cli/view.py": "opens the user's browser",
}
LIBRARIES = {
    "aiohttp", "distributed", "ftplib", "http", "httpx", "requests", "smtplib", "socket",
    "socketserver", "urllib", "urllib3", "webbrowser", "xmlrpc",
}  # fmt: skip
ALONE = """
import socket, sys
def refused(*_):
    raise OSError("CONNECTED")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
from leuko.cli import main
main(sys.argv[1:])
"""


def test_few_modules_can_connect():
    found = set()
    for path in SOURCE.rglob("*.py"):
        written = path.read_text(encoding="utf-8")
        names = {
            name
            for node in ast.walk(ast.parse(written))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            )
        }
        names -= {"urllib.parse"}  # takes addresses apart, no more
        if {name.split(".")[0] for name in names} & LIBRARIES or "torch.hub" in written:
            found.add(path.relative_to(SOURCE).as_posix())
    assert found == set(CONNECT)


def alone(*arguments):
    process = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert "CONNECTED" not in process.stdout + process.stderr
    return process


def test_scans_are_segmented_compared_and_evaluated_without_a_connection(heads, tmp_path):
    head, out = heads / "head0", tmp_path / "out"
    scans = "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"
    for command in (
        ["segment", *scans, "--model", SMALL_MODEL, "-o", out],
        ["compare", out, out, "-o", tmp_path / "changes"],
        ["evaluate", head / "wmh.nii.gz", out / "wmh.nii.gz"],
        ["models", "verify"],
        ["info"],
    ):
        process = alone(*command)
        assert process.returncode in (0, 3), process.stderr
    assert (out / "report.html").is_file()


def test_a_connection_would_be_noticed():
    with pytest.raises(AssertionError):
        alone("models", "pull", "http://127.0.0.1:9/model.zip")


def test_onnxruntime_tells_nobody(monkeypatch):
    told = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append("off"))
    runtime.load(SMALL_MODEL)
    assert told == ["off"]


def test_the_page_on_security_names_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert len(named) > 10
    assert all((ROOT / name).is_file() for name in named)
