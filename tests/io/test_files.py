"""Files are whole or not there, whatever happens to their writer."""

import errno
import os
import subprocess
import sys

import pytest

from leuko.errors import LeukoError
from leuko.io.files import find_images, require_writable, staged, walk

KILLED = """
import os, pathlib, signal, sys
from leuko.io.files import staged
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


@pytest.mark.linux
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


def test_whether_a_folder_can_be_written_is_found_out_without_making_it(tmp_path, monkeypatch):
    require_writable(tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(LeukoError, match=r"cannot write into .*file/out: Not a directory; choose"):
        require_writable(tmp_path / "file" / "out")

    def read_only(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(LeukoError, match=r"cannot write into .*: Permission denied; choose"):
        require_writable(tmp_path)


def test_a_link_without_a_target_is_a_file(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.nii").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loop.nii.gz").symlink_to("inside/back.nii.gz")
    (tmp_path / "inside" / "back.nii.gz").symlink_to("../loop.nii.gz")
    (tmp_path / "nowhere.nii").symlink_to("missing.nii")
    assert {path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)} == {
        "a.nii", "loop.nii.gz", "inside/back.nii.gz", "nowhere.nii"
    }  # fmt: skip


class LockedLink:
    """A directory entry whose target may not be entered, which a test by root cannot make."""

    def __init__(self, entry):
        self.name, self.path = entry.name, entry.path

    def is_dir(self):
        raise PermissionError(13, "Permission denied", self.path)


def test_a_link_into_a_locked_folder_is_given_to_the_caller_and_the_rest_is_read(
    tmp_path, monkeypatch
):
    for name in ("a.nii", "locked", "z.nii"):
        (tmp_path / name).touch()
    real = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: [LockedLink(e) if e.name == "locked" else e for e in real(path)]
    )
    errors = []
    ((_, folders, files),) = walk(tmp_path, on_error=errors.append)
    assert (folders, [path.name for path in files]) == ([], ["a.nii", "z.nii"])
    assert [error.filename for error in errors] == [str(tmp_path / "locked")]
    with pytest.raises(LeukoError, match="locked cannot be read: Permission denied"):
        find_images(tmp_path)
