"""Train as the original's script of this name does: the same flags, with PyTorch, since JAX's parts are no more."""

import sys

from langevin.training.command import main

if __name__ == "__main__":
    if not any(argument.startswith("--seed") for argument in sys.argv):
        sys.argv.append("--seed=0")
    main("dreambooth")
