"""Tensor arithmetic of a step: weighted sums in few passes, in at least fp32, and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from langevin.schedulers.noise import Level

DrawNoise = Callable[[torch.Tensor], torch.Tensor]

_WIDE = (torch.float32, torch.float64)
_ZERO = torch.zeros((), device="cpu")


def upcast(x: torch.Tensor) -> torch.Tensor:
    """fp16 and bf16 to fp32; fp32 and fp64 as they are."""
    return x if x.dtype in _WIDE else x.float()


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x.to(dtype)``, which takes a third of an addition's time even where there is nothing to do."""
    return x if x.dtype is dtype else x.to(dtype)


def scaled(x: torch.Tensor, a: float) -> torch.Tensor:
    """a·x, to the bit what ``x * a`` is: torch makes a tensor of a number that it multiplies by, of an alpha not."""
    return torch.add(_ZERO, x, alpha=a) if x.dtype in _WIDE else x * a


def combine(*terms: tuple[float, torch.Tensor]) -> torch.Tensor:
    """Σ a·x over pairs (a, x), in at least fp32, in as few passes as there are terms; zero terms cost nothing.

    No term is changed. A single term of weight 1 is given back itself.
    """
    total, scale, fresh, dtype, shape = None, 1.0, False, None, None
    for a, x in terms:
        if a == 0.0:
            continue
        kind = x.dtype
        if kind is not dtype and kind not in _WIDE:
            x = x.float()
            kind = x.dtype
        if total is None:
            total, scale, dtype, shape = x, a, kind, x.shape
            continue
        if scale != 1.0:
            total, scale, fresh = torch.add(_ZERO, total, alpha=scale), 1.0, True
        if fresh and kind is dtype and x.shape == shape:
            total.add_(x, alpha=a)
        else:
            total, fresh = torch.add(total, x, alpha=a), True
            dtype, shape = total.dtype, total.shape
    if total is None:
        return torch.zeros_like(upcast(terms[0][1]))
    return total if scale == 1.0 else torch.add(_ZERO, total, alpha=scale)


def draw(like: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> torch.Tensor:
    """Gaussian noise shaped like ``like``; a list of generators gives each image of the batch its own.

    Noise is drawn where the generator lives and then moved, so that a CPU generator means the same on any device.
    """
    return drawn_by(torch.randn, like, generator, like.dtype)


def drawn_by(
    law: Callable[..., torch.Tensor], like: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """The same of any law: ``torch.randn``, ``torch.rand``."""
    if isinstance(generator, (list, tuple)):
        if len(generator) == 1:
            return drawn_by(law, like, generator[0], dtype)
        if len(generator) != len(like):
            raise ValueError(f"{len(generator)} generators for a batch of {len(like)}: give one, or one per image")
        return torch.cat([drawn_by(law, like[k : k + 1], g, dtype) for k, g in enumerate(generator)])
    assert generator is None or isinstance(generator, torch.Generator)
    place = generator.device if generator is not None else like.device
    return law(like.shape, generator=generator, device=place, dtype=dtype).to(like.device)


def spread(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One number per image, (batch,), shaped to be multiplied with ``like`` and on its device."""
    return numbers.view(-1, *[1] * (like.ndim - 1)).to(like.device)


def per_image(levels: Sequence[Level], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(alpha, sigma) of one level per image, in at least fp32, shaped to be multiplied with ``like``."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.tensor(levels, dtype=dtype, device=like.device)
    alpha, sigma = (spread(column, like) for column in pairs.unbind(1))
    return alpha, sigma
