"""The conditions of the container, simulated: a read-only root, no rights, no home, and hardly a
place to write."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leuko
from phantoms import SMALL_MODEL

pytestmark = pytest.mark.linux
ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# In mounts of its own, all is read-only but one folder and, unless "ro" is given, /dev/shm.
READ_ONLY = """
set -e
out=$1; shm=$2; shift 2
mount --bind "$out" "$out"
mount --bind / /
mount -o remount,bind,ro /
if mountpoint -q /tmp; then mount -o remount,bind,ro /tmp; fi
if [ "$shm" = ro ]; then mount -t tmpfs -o ro tmpfs /dev/shm; fi
cd /
exec setpriv --bounding-set -all --inh-caps -all --no-new-privs env -i "$@"
"""


@pytest.fixture
def run(tmp_path):
    """Run Leuko without rights; it can write into the folder OUT only."""
    (tmp_path / "OUT").mkdir()

    def started(*arguments, shm="rw", **environment):
        given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(leuko.__file__).parents[1])}
        settings = [f"{name}={value}" for name, value in (given | environment).items()]
        mounts = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", tmp_path / "OUT", shm]
        command = [*mounts, *settings, sys.executable, "-m", "leuko.cli", *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    if not shutil.which("unshare") or started("--version").returncode != 0:
        pytest.skip("NOT TESTED: mounting a read-only root needs more rights")
    return started


@pytest.fixture
def dataset(heads, tmp_path):
    """A BIDS dataset of one subject."""
    anat = tmp_path / "BIDS" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for name, suffix in {"FLAIR": "FLAIR", "T1": "T1w"}.items():
        shutil.copy(heads / "head0" / f"{name}.nii.gz", anat / f"sub-01_{suffix}.nii.gz")
    return tmp_path / "BIDS"


def image_environment():
    """The variables that the Dockerfile sets, without those that name its own folders."""
    (line,) = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
    settings = dict(word.split("=", 1) for word in line.split())
    return {name: value for name, value in settings.items() if name != "PATH"}


def test_the_root_of_these_tests_is_read_only(run, tmp_path):
    process = run("synth", "-o", tmp_path / "elsewhere")
    assert process.returncode == 2
    assert "cannot write into" in process.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_the_bids_app_works_as_in_the_container(run, dataset, tmp_path):
    out = tmp_path / "OUT"
    arguments = [dataset, out, "participant", "--model", SMALL_MODEL, "--lenient"]
    process = run("bids", *arguments, **image_environment())
    assert process.returncode in (0, 3), process.stderr
    assert "Traceback" not in process.stderr
    assert list(out.glob("sub-01/anat/*_mask.nii.gz"))
    process = run("bids", dataset, out, "group", **image_environment())
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}, {"HOME": "/", "TMPDIR": "/"}])
def test_a_scan_is_segmented_without_home_or_temporary_folder(run, heads, tmp_path, home):
    head, out = heads / "head0", tmp_path / "OUT" / "result"
    scans = "--flair", head / "FLAIR.nii.gz", "--t1", head / "T1.nii.gz"
    options = "--model", SMALL_MODEL, "--save-intermediate", "-o", out
    process = run("segment", *scans, *options, shm="ro", **home)
    assert process.returncode in (0, 3), process.stderr
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["command"] == "segment"
    assert (out / "report.html").is_file()
    process = run("info", shm="ro", **home)
    assert process.returncode == 0, process.stderr


def test_the_image_runs_without_root_and_keeps_nothing_outside_of_its_root():
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["1000"]
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("ENTRYPOINT")
    assert "VOLUME" not in DOCKERFILE
    assert "ADD " not in DOCKERFILE
    assert set(image_environment()) == {"PYTHONDONTWRITEBYTECODE", "HOME", "TMPDIR"}
