"""``python -m langevin``: the command line."""

from langevin.cli import main

main()
