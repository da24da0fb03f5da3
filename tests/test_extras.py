"""Commands without the extras that they need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from leuko.cli.app import app
from leuko.errors import LeukoError, require
from without_extras import commands

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def libraries(extra):
    """What an extra brings, as it is imported."""
    names = (re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"][extra])
    return [name.replace("-", "_") for name in names]


@pytest.mark.parametrize("extra", ["train", "demo", "cohort", "dicom"])
def test_every_command_works_without_an_extra_or_names_it(extra):
    process = subprocess.run(
        [sys.executable, HERE / "without_extras.py", *libraries(extra)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_every_command_is_tried_without_extras(tmp_path):
    tried = {str(arguments[0]) for arguments, _, _ in commands(tmp_path)}
    known = {info.callback.__name__.replace("_", "-") for info in app.registered_commands}
    assert tried - {"--help", "--version"} == known | {"models"}


def test_libraries_that_commands_look_for_are_in_the_extra_that_they_name(tmp_path):
    for _, needed, extra in commands(tmp_path):
        assert set(needed) <= set(libraries(extra) if extra else ())


def test_a_library_that_is_looked_for_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    require("this", extra="none")
    assert "this" not in sys.modules
    with pytest.raises(LeukoError, match=r'nowhere not installed; pip install "leuko\[none\]"'):
        require("this", "nowhere", extra="none")
