"""Random numbers: one generator per picture, so that picture k of a batch can be made again alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Generator, Tensor

MAX_SEED = 2**64 - 1


def seeds_for(seed: int | Sequence[int], batch: int) -> list[int]:
    """One seed per picture: ``seed, seed + 1, …`` from an int, or the given list.

    Raises:
        ValueError: if a list's length is not ``batch`` or a seed is outside 0 … 2⁶⁴-1.
    """
    one = _whole(seed)
    if one is None:
        listed = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)) else []
        seeds = list(map(_whole, listed))
    else:
        seeds = [one]
    if not seeds or any(s is None or not 0 <= s <= MAX_SEED for s in seeds):
        raise ValueError(f"seed is {seed!r}; give a whole number from 0 to 2**64 - 1, or a list with one per picture")
    if one is not None:
        return [(one + k) & MAX_SEED for k in range(batch)]
    if len(seeds) != batch:
        raise ValueError(f"seed has {len(seeds)} entries for {batch} pictures; give one per picture, or a single int")
    return [s for s in seeds if s is not None]


def _whole(value: Any) -> int | None:
    """A whole number of any kind, numpy's among them, as an int; None for anything else, True and False too."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


class Noise:
    """Random numbers for a batch of pictures.

    Args:
        generator: None (torch's global state), one generator that draws the whole batch at once, or a list with
            one generator per picture. Noise is drawn on the generator's own device and then moved.
        law: how they are distributed: ``torch.randn``, standard normal, or ``torch.rand``, uniform in [0, 1).
    """

    def __init__(
        self, generator: Generator | Sequence[Generator] | None = None, law: Callable[..., Tensor] = torch.randn
    ) -> None:
        if isinstance(generator, Sequence) and len(generator) == 1:
            generator = generator[0]
        self.generator = generator
        self.law = law

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> Noise:
        """One CPU generator per seed."""
        return cls([Generator("cpu").manual_seed(s) for s in seeds])

    @property
    def per_picture(self) -> bool:
        """Whether each picture has a generator of its own."""
        return isinstance(self.generator, Sequence)

    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Noise of ``shape`` (its first dimension counts the pictures).

        Raises:
            ValueError: if there is a list of generators and its length is not ``shape[0]``.
        """
        generator = self.generator
        if generator is None:
            return self.law(shape, dtype=dtype, device=device)
        if isinstance(generator, Generator):
            return self.law(shape, generator=generator, dtype=dtype, device=generator.device).to(device)
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}; give one generator, or one each")
        one = (1, *shape[1:])
        return torch.cat([self.law(one, generator=g, dtype=dtype, device=g.device) for g in generator]).to(device)

    def by_frame(self) -> Noise:
        """The same numbers for videos ``(batch, channels, frames, …)``, frame after frame instead of channel by
        channel: what a network that knows pictures only would draw for the frames.
        """
        return _FrameNoise(self.generator, self.law)

    def whole(self, below: int, row: int) -> int:
        """A random whole number from 0 to ``below - 1``, of picture ``row``'s own generator where it has one."""
        generator: Any = self.generator[row] if isinstance(self.generator, Sequence) else self.generator
        device = "cpu" if generator is None else generator.device
        return int(torch.randint(below, (1,), generator=generator, device=device).item())

    def __call__(self, like: Tensor) -> Tensor:
        """Fresh noise with the shape, dtype and device of ``like``."""
        return self.draw(like.shape, like.dtype, like.device)


class _FrameNoise(Noise):
    def draw(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        batch, channels, frames, *places = shape
        return super().draw((batch, frames, channels, *places), dtype, device).transpose(1, 2)


def noise_for(
    batch: int,
    generator: Generator | Sequence[Generator] | None = None,
    seed: int | Sequence[int] | None = None,
    law: Callable[..., Tensor] = torch.randn,
) -> tuple[Noise, list[int | None]]:
    """The noise of one call, and the seed of each picture (None where it cannot be known).

    ``seed`` gives every picture a generator of its own. A ``generator`` is used as it is; the seeds reported for it
    are those it was last seeded with, when they identify a picture (one generator per picture, not yet used).

    Raises:
        ValueError: if both are given, or counts do not fit.
    """
    if seed is not None and generator is not None:
        raise ValueError("both seed and generator were given; give one of them")
    if seed is not None:
        seeds = seeds_for(seed, batch)
        return Noise([Generator("cpu").manual_seed(s) for s in seeds], law), list(seeds)
    each = list(generator) if isinstance(generator, Sequence) else [generator] if batch == 1 else []
    if len(each) != batch:
        return Noise(generator, law), [None] * batch
    return Noise(generator, law), [_seed_if_fresh(g) for g in each]


def _seed_if_fresh(generator: Generator | None) -> int | None:
    """The seed of a CPU generator that has drawn nothing since it was seeded."""
    if generator is None or generator.device.type != "cpu":
        return None
    seeded = Generator("cpu").manual_seed(generator.initial_seed())
    return generator.initial_seed() if torch.equal(seeded.get_state(), generator.get_state()) else None
