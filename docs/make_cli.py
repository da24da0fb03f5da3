"""Writes docs/cli.md: the help of every command, as the terminal shows it."""

import os
import subprocess
import sys
from pathlib import Path

MODELS = tuple(f"models {verb}" for verb in ("list", "path", "verify", "pull"))
COMMANDS = (
    "", "segment", "measure", "view", "batch", "bids", "compare", "evaluate", "demo", *MODELS,
    "train", "export", "synth", "challenge", "challenge-score", "info",
)  # fmt: skip


def page() -> str:
    """The page as Markdown."""
    parts = ["# Commands", "", "Made by `python docs/make_cli.py` from the program itself.", ""]
    for command in COMMANDS:
        arguments = [sys.executable, "-m", "leuko.cli", *command.split(), "--help"]
        help_text = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "80", "TERMINAL_WIDTH": "80"},
        ).stdout.replace("python -m leuko.cli", "leuko")
        parts += [f"## leuko {command}".rstrip(), "", "```text", help_text.strip(), "```", ""]
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
