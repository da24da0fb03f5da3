"""A process of its own: its limits hold, and how it ended is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cohorts import awaited
from leuko.cohort.worker import Limits, run

pytestmark = pytest.mark.linux
TASKS = """
import ctypes, os, signal, sys
from leuko.cohort.worker import receive
task = receive().strip()
print("task", task, os.environ["OMP_NUM_THREADS"], os.getpid(), flush=True)
if task == "hang":
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock held: no thread of Python gets on
elif task == "devour":
    kept = []
    while True:
        kept.append(bytearray(20_000_000))
elif task == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif task == "refuse":
    sys.exit("error: FLAIR.nii.gz is all zeros")
elif task == "stumble":
    raise ValueError("a bug")
elif task == "exit":
    os._exit(3)
"""


@pytest.fixture
def program(tmp_path) -> list[str]:
    (tmp_path / "tasks.py").write_text(TASKS)
    return [str(tmp_path / "tasks.py")]


def outcome(program, task, tmp_path, *, memory_gb=2.0, seconds=60.0, threads=1):
    return run(program, task, tmp_path / "log", Limits(memory_gb, seconds, threads))


def test_work_that_succeeds_has_no_reason_and_leaves_its_log(program, tmp_path):
    result = outcome(program, "good", tmp_path, threads=3)
    assert result.reason is None
    assert 0 < result.seconds < 60
    assert (tmp_path / "log").read_text().startswith("task good 3 ")


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("refuse", "FLAIR.nii.gz is all zeros"),
        ("stumble", "ValueError: a bug"),
        ("crash", "was ended by SIGSEGV"),
        ("exit", "task exit 1 "),
    ],
)
def test_a_failure_is_told_in_one_line(program, tmp_path, task, reason):
    result = outcome(program, task, tmp_path)
    assert result.reason.startswith(reason)
    assert "\n" not in result.reason


def test_a_silent_failure_tells_its_exit_code(tmp_path):
    result = outcome(["-c", "raise SystemExit(5)"], "any", tmp_path)
    assert result.reason == "ended with exit code 5"


def test_the_cap_on_memory_is_honoured(program, tmp_path):
    result = outcome(program, "devour", tmp_path, memory_gb=0.3)
    assert result.reason == "needed more than 0.3 GB of memory"
    assert 0.3 < result.peak_gb < 1.5


def test_a_process_that_hangs_is_ended_and_its_log_says_where(program, tmp_path):
    result = outcome(program, "hang", tmp_path, seconds=1.0)
    assert result.reason == "took longer than 1 s"
    assert "tasks.py" in (tmp_path / "log").read_text().split("Timeout", 1)[1]


def test_killed_from_outside_it_asks_about_memory(tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    result = outcome(["-c", code], "any", tmp_path)
    assert result.reason == "was ended by SIGKILL: was the machine out of memory?"


def test_it_ends_with_its_parent(tmp_path):
    """Even where the parent is killed and cannot say goodbye."""
    (tmp_path / "waits.py").write_text(
        "import os, time\nfrom leuko.cohort.worker import receive\nreceive()\n"
        "print(os.getpid(), flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys; from pathlib import Path\n"
                "from leuko.cohort.worker import Limits, run\n"
                "run([sys.argv[1]], 'x', Path(sys.argv[2]), Limits(2, 600, 1))"
            ),
            str(tmp_path / "waits.py"),
            str(tmp_path / "log"),
        ]
    )
    child = int(awaited(lambda: (tmp_path / "log").is_file() and (tmp_path / "log").read_text()))
    assert psutil.pid_exists(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert awaited(lambda: not psutil.pid_exists(child) or is_dead(child))


def is_dead(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_log_holds_any_name_whatever_the_encoding_of_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code = "import sys; print('\\u7ed3 \\udcff'); sys.exit('error: \\u7ed3 \\udcff is damaged')"
    result = outcome(["-c", code], "any", tmp_path)
    assert result.reason == "结 \\udcff is damaged"
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("结 \\udcff\n")


def test_the_log_is_made_anew(program, tmp_path: Path):
    for task in ("good", "refuse"):
        outcome(program, task, tmp_path)
    assert "good" not in (tmp_path / "log").read_text()
