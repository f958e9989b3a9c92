"""Train as the original's script of this name does: the same flags, one loop. ``--help`` lists them."""

from langevin.training.command import main

if __name__ == "__main__":
    main("custom_diffusion")
