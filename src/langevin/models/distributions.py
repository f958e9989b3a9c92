"""The distribution over latents that a variational autoencoder gives for a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Independent normals (Kingma & Welling, 2014).

    Args:
        parameters: (batch, 2 * channels, height, width): means, then log variances, which are held in [-30, 20].
        deterministic: variance 0: every sample is the mean.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """One draw. Numbers come from where ``generator`` lives; a list has one generator per picture."""
        return self.mean + self.std * _normal(self.mean, generator)

    def mode(self) -> Tensor:
        """The most likely latents: the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Kullback-Leibler divergence to ``other``, or to a standard normal, summed over each picture: (batch,)."""
        if self.deterministic:
            return torch.zeros(1)
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = (self.mean - other.mean) ** 2 / other.var + self.var / other.var
            terms = terms - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """-log p(sample), summed over ``dims``."""
        if self.deterministic:
            return torch.zeros(1)
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


def _normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    if isinstance(generator, Sequence):
        if len(generator) != like.shape[0]:
            raise ValueError(
                f"{len(generator)} generators for a batch of {like.shape[0]}; give one per picture, or one"
            )
        return torch.cat([_normal(like[i : i + 1], g) for i, g in enumerate(generator)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
