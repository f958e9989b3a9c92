"""A recipe in a file of its own: a network of a few numbers learns noise in pictures of 4 x 4 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from langevin import DDPMScheduler, UNet2DModel
from langevin.training import losses
from langevin.training.flags import Flags, made
from langevin.training.recipe import Recipe

NET = dict(
    sample_size=4,
    block_out_channels=(8,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
    add_attention=False,
    dropout=0.1,
)


@dataclass(kw_only=True)
class ToyFlags(Flags):
    """Learn nothing of use.

    Args:
        pictures: how many.
    """

    pictures: int = 10


class Toy(Recipe):
    """Noise of tiny pictures."""

    flags_class = ToyFlags

    def load(self):
        self.scheduler = DDPMScheduler()
        return {"unet": UNet2DModel(**NET)}

    def rows(self):
        generator = torch.Generator().manual_seed(0)
        return [{"picture": one} for one in torch.rand(self.flags.pictures, 3, 4, 4, generator=generator) * 2 - 1]

    def example(self, index, row, rng):
        return {"clean": row["picture"].flip(-1) if rng.random() < 0.5 else row["picture"], "index": index}

    def loss(self, networks, batch, draws):
        clean = batch["clean"]
        noise = draws.normal(tuple(clean.shape))
        t = draws.whole(1000)
        error = networks["unet"](self.scheduler.add_noise(clean, noise, t), t).sample - noise
        return losses.mean_of_rows(losses.squared(error))

    def save(self, networks, folder):
        networks["unet"].save_pretrained(folder)


def toy(folder, **flags):
    """A recipe that writes into a folder, quietly."""
    flags = {"train_batch_size": 2, "max_train_steps": 6, "seed": 1, "report_to": "none", **flags}
    return Toy(made(ToyFlags, {"output_dir": str(folder), "learning_rate": 1e-2, **flags}))
