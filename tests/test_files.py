"""Files are whole or not there, whatever happens to their writer."""

import subprocess
import sys

import pytest

from leuko.files import staged

KILLED = """
import os, pathlib, signal, sys
from leuko.files import staged
with staged(pathlib.Path(sys.argv[1])) as scratch:
    (scratch / "a").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_scratch_lies_within_an_output_folder_that_is_there(tmp_path):
    """Which may be a volume, mounted in a container that is read-only."""
    with staged(tmp_path) as scratch:
        assert scratch.parent == tmp_path
        (scratch / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no one of the killed")
@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, there):
    folder = tmp_path / "out [1]"
    if there:
        folder.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, folder], check=False)
    home = folder if there else tmp_path
    (left,) = home.iterdir()
    assert left.name.startswith(".leuko-")
    with staged(folder) as scratch:
        assert not left.exists()
        (scratch / "b").touch()
        with staged(tmp_path / "out") as other:  # a name that begins alike
            assert scratch.exists()
            (other / "c").touch()
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out [1]"]


def test_folders_made_for_nothing_are_removed(tmp_path):
    with pytest.raises(ValueError, match="halfway"), staged(tmp_path / "a" / "b"):
        raise ValueError("halfway")
    assert not any(tmp_path.iterdir())
