"""The command line."""

from leuko.cli.app import main

__all__ = ["main"]
