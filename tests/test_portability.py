"""What differs on Windows and macOS, simulated here: modules, locks, encodings, open files."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import SimpleITK as sitk  # noqa: N813, as everywhere

import leuko
from leuko.cohort import worker
from leuko.errors import LeukoError
from leuko.io import files
from leuko.io.files import replace_text, staged
from leuko.preprocessing.registration import Alignment
from leuko.view.server import Viewer
from phantoms import SMALL_MODEL

SOURCES = sorted(Path(leuko.__file__).parent.rglob("*.py"))
# Modules and functions that Windows or macOS do not have.
ABSENT = {"fcntl", "grp", "pwd", "pty", "resource", "termios"}
GUARDED = {"io/files.py": {"fcntl"}}  # and works without it: see below
AS_WINDOWS = """
import os, sys, warnings
for name in ("fcntl", "grp", "pwd", "pty", "resource", "termios"):
    sys.modules[name] = None
for name in {"sched_getaffinity", "sysconf"} & set(dir(os)):
    delattr(os, name)
warnings.filterwarnings("error", category=EncodingWarning, module=r"leuko\\..*")
from leuko.cli import main
"""


# What a test may use only if it is marked linux, since it fails or means something else elsewhere.
LINUX = (
    r"os\.fork\(|SIGKILL|(?:kill|send_signal)\([^)]*SIGINT|[\"'(]/proc/|[\"]/bin/sh\", |geteuid"
    r"|preexec_fn|mkfifo|fsdecode\(b|import (?:fcntl|pwd|pty|resource)\b"
)
TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


# Calls of that name which open no text.
OTHERS = {"os.open", "webbrowser.open", "content.open", "self.opener.open", "gzip.open"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_text_is_read_and_written_in_a_stated_encoding(path):
    """Else Windows takes the code page of the country."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) in OTHERS:
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        is_binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
        if name in ("read_text", "write_text") or (name in ("open", "fdopen") and not is_binary):
            assert "encoding" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


def test_modules_of_unix_alone_are_guarded():
    for path in SOURCES:
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        name = path.relative_to(SOURCES[0].parent).as_posix()
        assert imported & ABSENT <= GUARDED.get(name, set()), name


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_of_what_only_linux_has_are_marked(path):
    written = path.read_text(encoding="utf-8")
    if path.name != Path(__file__).name and re.search(LINUX, written):
        assert "pytest.mark.linux" in written


def run_as_windows(*arguments, **environment):
    code = f"{AS_WINDOWS}\nmain({[str(argument) for argument in arguments]!r})"
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | environment,
    )


def test_a_scan_is_segmented_and_compared_without_the_modules_of_unix(heads, tmp_path):
    """In a code page that lacks most letters, with a name that has some of them."""
    head = shutil.copytree(heads / "head0", tmp_path / "Müller 脳")
    out = tmp_path / "out"
    scans = ["--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"]
    page = {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    options = ["--model", SMALL_MODEL, "--save-intermediate", "-o", out]
    for _ in range(2):  # the second time into the same folder
        process = run_as_windows("segment", *scans, *options, **page)
        assert process.returncode in (0, 3), process.stderr
        assert "Traceback" not in process.stderr
        assert (out / "wmh.nii.gz").is_file()
    assert "脳" in (out / "run.json").read_text(encoding="utf-8")
    assert sorted(tmp_path.iterdir()) == sorted([head, out])  # no scratch folder is left
    process = run_as_windows("info", **page)
    assert process.returncode == 0, process.stderr
    assert "VNNI" in process.stdout


def test_a_result_that_another_program_has_open_is_an_error_and_keeps_it(tmp_path, monkeypatch):
    """As on Windows, where a table that is open in Excel cannot be replaced."""
    out = tmp_path / "out"
    with staged(out) as scratch:
        (scratch / "lesions.tsv").write_text("old", encoding="utf-8")

    def used(_, target):
        raise PermissionError(13, "The process cannot access the file", str(target))

    monkeypatch.setattr(Path, "replace", used)
    with pytest.raises(LeukoError, match="The process cannot access the file"), staged(out) as new:
        (new / "lesions.tsv").write_text("new", encoding="utf-8")
    assert (out / "lesions.tsv").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.rglob(".leuko*")] == []


def test_scratch_folders_need_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    for text in ("first", "second"):
        with staged(tmp_path / "out") as scratch:
            (scratch / "wmh.json").write_text(text, encoding="utf-8")
    assert (tmp_path / "out" / "wmh.json").read_text(encoding="utf-8") == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_line_ends_of_tables_are_not_doubled(tmp_path):
    replace_text(tmp_path / "view.csv", "a,b\r\n1,2\r\n")
    assert (tmp_path / "view.csv").read_bytes() == b"a,b\r\n1,2\r\n"


def test_the_transform_is_read_by_itk_and_written_to_any_path(tmp_path):
    matrix = np.eye(4)
    matrix[:3, :3] += np.arange(9).reshape(3, 3) / 100
    matrix[:3, 3] = 1.5, -2.25, 1e-7
    alignment = object.__new__(Alignment)
    object.__setattr__(alignment, "matrix", matrix)
    alignment.write(tmp_path / "脳.tfm")
    shutil.copy(tmp_path / "脳.tfm", tmp_path / "copy.tfm")
    read = sitk.ReadTransform(str(tmp_path / "copy.tfm"))
    point = np.array([10.0, 20.0, 30.0])
    lps = np.diag([-1.0, -1.0, 1.0])
    moved = lps @ (matrix[:3, :3] @ (lps @ point) + matrix[:3, 3])
    np.testing.assert_allclose(read.TransformPoint(point), moved, rtol=1e-12)


def test_memory_of_the_real_python_counts_where_a_launcher_starts_it(monkeypatch):
    """As in virtual environments on Windows."""

    class Process:
        def __init__(self, gb, children=()):
            self.gb, self._children = gb, children

        def memory_info(self):
            return SimpleNamespace(rss=int(self.gb * 1e9))

        def children(self):
            return list(self._children)

    class Child:
        pid = 1

        def wait(self, seconds):
            raise subprocess.TimeoutExpired("python", seconds)

    monkeypatch.setattr(worker, "IS_WINDOWS", True)
    monkeypatch.setattr(psutil, "Process", lambda _: Process(0.01, [Process(3.0)]))
    why, peak_gb = worker._watch(Child(), worker.time.monotonic(), worker.Limits(2.0, 60, 1))
    assert why == "needed more than 2 GB of memory"
    assert peak_gb == pytest.approx(3.01)


def test_only_the_parent_gets_ctrl_c_on_windows(tmp_path, monkeypatch):
    started = []

    def popen(*_, **options):
        started.append(options)
        raise OSError("enough")

    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(OSError, match="enough"):
        worker.run([], "task", tmp_path / "log", worker.Limits(1, 1, 1))
    assert started[0]["creationflags"] == 512


def test_no_other_program_can_listen_on_the_port_of_the_viewer():
    assert Viewer.allow_reuse_address == (os.name != "nt")  # SO_REUSEADDR allows it on Windows
