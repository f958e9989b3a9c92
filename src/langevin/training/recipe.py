"""What a recipe says of a kind of training; all else is the loop's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from langevin.training.average import Average, quick
from langevin.training.data import Draws, Row
from langevin.training.flags import Flags


class Recipe:
    """A kind of training.

    The loop asks in this order: :meth:`check`, :meth:`load`, :meth:`rows`; then at every step :meth:`example` for each
    row of a batch (perhaps in another process) and :meth:`loss`; now and then :meth:`pictures` and :meth:`keep`; at the
    end :meth:`save`.

    Attributes:
        flags: what the command was given.
        device, dtype: where to compute, and in what the parts that are not trained are kept; the loop sets both
            before :meth:`load`.
        step: while a result is written that is not the last one, after how many steps; else None.
    """

    #: the dataclass of the recipe's flags
    flags_class: ClassVar[type[Flags]] = Flags
    #: pipelines of the kind that is saved carry these tags on the hub
    tags: ClassVar[Sequence[str]] = ("diffusers", "langevin")

    def __init__(self, flags: Any) -> None:
        self.flags = flags
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.step: int | None = None

    def check(self) -> None:
        """Refuse flags that cannot be trained with, before anything is loaded."""
        self.flags.check()

    def load(self) -> Mapping[str, nn.Module]:
        """Load everything; the networks to train, in float32, by the names of their folders in checkpoints."""
        raise NotImplementedError

    def trained(self, networks: Mapping[str, nn.Module]) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for network in networks.values() for p in network.parameters() if p.requires_grad]

    def rows(self) -> Sequence[Row]:
        """What there is to train on."""
        raise NotImplementedError

    def example(self, index: int, row: Row, rng: Random) -> dict[str, Any]:
        """Tensors and other values of a row; what is drawn is drawn from ``rng``."""
        raise NotImplementedError

    def prepare(self, rows: Sequence[Row]) -> None:
        """What is worth doing once before the first step, such as encoding all pictures."""

    def loss(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """(rows,) the loss of each row of a batch. What is random comes from ``draws``."""
        raise NotImplementedError

    def draws(self, seed: int, places: Sequence[int]) -> Draws:
        """A batch's random numbers, from the run's seed and the places of the batch's rows."""
        return Draws(seed, places, self.device)

    def after_step(self, networks: Mapping[str, nn.Module]) -> None:
        """Called after every step of the optimiser."""

    def average(self, network: nn.Module) -> Average:
        """The average of a network's weights, with ``--use_ema``."""
        return Average(network, quick, "cpu" if self.flags.offload_ema else None)

    def keep(self, name: str, network: nn.Module, folder: Path) -> None:
        """Write a network into its folder in a checkpoint."""
        network.save_pretrained(folder)  # type: ignore[operator]

    def take_up(self, name: str, network: nn.Module, folder: Path) -> None:
        """Put back what :meth:`keep` wrote."""
        network.load_state_dict(type(network).from_pretrained(folder, torch_dtype=torch.float32).state_dict())  # type: ignore[attr-defined]

    def save(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write the result."""
        raise NotImplementedError

    def pictures(self, networks: Mapping[str, nn.Module], step: int) -> list[Image.Image]:
        """A validation's pictures, from fixed seeds; none where nothing was asked for."""
        return []

    def validates_at(self, step: int, total: int, per_epoch: int) -> bool:
        """Whether there are pictures to make after that many steps."""
        every = self.flags.validation_steps
        return step == total or bool(every and step % every == 0)

    def saves_at(self, step: int, total: int, per_epoch: int) -> bool:
        """Whether the result is written after that many steps; it always is at the end."""
        return step == total

    def summary(self) -> dict[str, str]:
        """What the recipe wants to be said before it begins."""
        return {}
