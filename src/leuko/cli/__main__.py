"""`python -m leuko.cli` is `leuko`."""

from leuko.cli.main import main

main()
