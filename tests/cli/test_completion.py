"""Shell completion: the script for each shell, and what it offers."""

import os
import shutil
import subprocess
import sys

import pytest

from leuko.cli.app import GROUPS, app

PROGRAM = "import sys; sys.argv[0] = 'leuko'; from leuko.cli import main; main()"


def complete(**environment):
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert process.stderr == ""
    return process.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_valid_and_calls_leuko(shell, tmp_path):
    script = tmp_path / "completion"
    script.write_text(complete(_LEUKO_COMPLETE=f"source_{shell}"), encoding="utf-8")
    assert f"_LEUKO_COMPLETE=complete_{shell}" in script.read_text(encoding="utf-8")
    if not shutil.which(shell):
        pytest.skip(f"NOT TESTED: {shell} is not installed")
    subprocess.run([shell, "-n", script], check=True)


def test_the_script_of_the_current_shell_is_shown():
    command = f'"{sys.executable}" -c "{PROGRAM}" --show-completion; true'
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)  # noqa: S607
    assert "complete -o default -F _leuko_completion leuko" in process.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("leuko se", {"segment"}),
        ("leuko models v", {"verify"}),
        ("leuko segment --rims e", {"exclude"}),
        ("leuko segment --no", set()),
    ],
)
def test_commands_options_and_values_are_offered(typed, offered):
    words = len(typed.split()) - 1
    found = complete(_LEUKO_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(words))
    assert set(found.split()) == offered


def test_every_command_is_listed_in_a_group():
    known = {info.callback.__name__.replace("_", "-") for info in app.registered_commands}
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted({*known, "models"}), "add it to GROUPS in cli/app.py"
