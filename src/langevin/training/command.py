"""Recipes from a command line: ``langevin train text-to-image …``, and scripts by the original's names."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from langevin.checkpoints.errors import CheckpointError
from langevin.training.flags import BadFlags, parse, parser_of
from langevin.training.recipes import RECIPES, recipe_class


def run(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train with a recipe.

    Args:
        name: of the recipe.
        arguments: flags; this process's own by default.
        prog: what ``--help`` calls the command.

    Raises:
        BadFlags: no such recipe, or flags that cannot be trained with.
    """
    from langevin.training.loop import train

    name = name.replace("-", "_")
    if name not in RECIPES:
        raise BadFlags(f"there is no recipe {name!r}; there are: {', '.join(sorted(RECIPES))}")
    recipe = recipe_class(name)
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        parser_of(recipe.flags_class, prog or f"langevin train {name}").print_help()
        return
    logging.basicConfig(format="%(message)s", level=logging.INFO if _is_first() else logging.ERROR)
    for noisy in ("httpx", "datasets", "urllib3", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    train(recipe(parse(recipe.flags_class, arguments, prog or name)))


def main(name: str) -> None:
    """The same for a script: errors of usage are one line and exit code 2, others one line and 1."""
    from langevin.cli.errors import one_line
    from langevin.training.loop import Stopped

    try:
        run(name, prog=os.path.basename(sys.argv[0]))
    except (BadFlags, CheckpointError, Stopped, KeyboardInterrupt, RuntimeError, OSError) as error:
        if os.environ.get("LANGEVIN_DEBUG", "") not in ("", "0"):
            raise
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        if _is_first() or not isinstance(error, BadFlags):
            print(f"{os.path.basename(sys.argv[0])}: {said}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1))


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"
