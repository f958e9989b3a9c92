"""``python -m langevin.cli``: the command line, where the ``langevin`` command is not on the path."""

from langevin.cli import main

main()
