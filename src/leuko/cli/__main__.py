"""`python -m leuko.cli` is `leuko`."""

from leuko.cli import main

main()
