"""Whatever stdout and stderr can take, a command does its work and tells the truth."""

import io
import json
import os
import subprocess
import sys

import pytest

from leuko.cli.streams import DONE_WITH_WARNINGS, Printable, printable
from leuko.io import nifti

pytestmark = pytest.mark.linux
ODD = "\udcff-结"  # a name that is not valid in any encoding, and one of CJK


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "leuko.cli", *map(str, arguments)], check=False, **options
    )


@pytest.fixture
def odd(heads, tmp_path):
    """References in a folder, and below a name, that few terminals can show."""
    labels = nifti.read(heads / "head0" / "wmh.nii.gz")
    for name in ("a", ODD):
        (tmp_path / ODD / name).mkdir(parents=True)
        nifti.write(tmp_path / ODD / name / "wmh.nii.gz", labels)
    return tmp_path / ODD


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_what_an_encoding_cannot_hold_is_escaped(encoding):
    held = io.BytesIO()
    stream = Printable(io.TextIOWrapper(held, encoding=encoding))
    assert stream.write(f"é {ODD}\n") == 6
    stream.flush()
    told = held.getvalue().decode(encoding)
    assert told.startswith("\\xe9" if encoding == "ascii" else "é")
    assert "\\udcff-" in told
    assert ("结" if encoding.startswith("utf") else "\\u7ed3") in told
    assert stream.failure is None
    stream.release()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_command_prints_names_that_its_terminal_cannot_show(odd, tmp_path, encoding):
    table = tmp_path / "table.tsv"
    process = run(
        "evaluate", odd, odd, "-o", table,
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert b"\\udcff-" in process.stdout
    assert "\\udcff-结" in table.read_text(encoding="utf-8")


def test_errors_warnings_and_json_may_name_them_too(odd):
    narrow = {"capture_output": True, "env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    process = run("evaluate", odd / "gone", odd, **narrow)
    assert process.returncode == 2
    assert process.stderr.endswith(b"-\\u7ed3/gone does not exist; check the path\n")
    (odd / ODD / "wmh.nii.gz").rename(odd / "elsewhere.nii.gz")
    process = run("evaluate", odd, odd, "--json", **narrow)
    assert ODD not in json.loads(process.stdout)


def test_a_reader_that_leaves_ends_nothing(heads):
    """As in `leuko ... | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = run("evaluate", heads, heads, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


def test_output_that_is_lost_on_a_full_disk_is_told(heads):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = run("evaluate", heads, heads, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == DONE_WITH_WARNINGS
    assert process.stderr.startswith("warning: standard output could not be written")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(heads, tmp_path, closed):
    table = tmp_path / "table.tsv"
    command = f'"{sys.executable}" -m leuko.cli evaluate "{heads}" "{heads}" -o "{table}" {closed}'
    process = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True)
    assert process.returncode == 0
    assert b"Traceback" not in process.stdout + process.stderr
    assert len(table.read_text().splitlines()) == 10


def test_there_may_be_no_streams_at_all(monkeypatch):
    """As in pythonw."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with printable():
        sys.stdout.write("nobody reads this")
        sys.stderr.write("nor this")
    assert sys.stdout is None


def test_the_streams_of_the_caller_are_given_back(leuko):
    before = sys.stdout, sys.stderr
    leuko("--version")
    assert (sys.stdout, sys.stderr) == before
