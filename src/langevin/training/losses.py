"""What a denoiser learns from: the target, how errors at different levels are weighed, and what is done to the noise.

All of them work on batches ``(rows, …)`` and give or take one value per row, so that a row's loss does not depend on
the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[tuple[int, ...]], Tensor]


def target(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor, prediction_type: str) -> Tensor:
    """What the network should say of ``x = α·clean + σ·noise``.

    ε itself; v = α·ε - σ·x0 (Salimans & Ho 2022, 2202.00512, appendix D); or x0.

    Raises:
        ValueError: another ``prediction_type``.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    if prediction_type == "sample":
        return clean
    raise ValueError(f"prediction_type is {prediction_type!r}; it must be epsilon, v_prediction or sample")


# -- how errors are weighed ------------------------------------------------------------------------------------------


def signal_to_noise(scheduler: Any, timesteps: Tensor) -> Tensor:
    """ᾱ / (1 - ᾱ) at each of the ``timesteps``, in float32."""
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps.long()]
    return alpha_bar / (1 - alpha_bar)


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, γ), of the error in x0 (Hang et al. 2023, 2303.09556, equation 8)."""
    return snr.clamp(max=gamma)


def soft_min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """SNR·γ / (SNR + γ), the same without a kink (Crowson et al. 2024, 2401.11605, section 4.5)."""
    return snr * gamma / (snr + gamma)


def p2(snr: Tensor, gamma: float = 1.0, k: float = 1.0) -> Tensor:
    """SNR / (k + SNR)^γ: less for levels at which nothing but noise is removed (Choi et al. 2022, 2204.00227,
    equation 8).
    """
    return snr / (k + snr) ** gamma


def debiased(snr: Tensor) -> Tensor:
    """√SNR: x0's bias weighed alike at all levels (Yu et al. 2023, 2310.08442, equation 12)."""
    return snr.sqrt()


WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "p2": p2,
    "debiased": debiased,
}
"""From signal-to-noise ratios to weights of the squared error in x0."""


def weights(name: str, snr: Tensor, prediction_type: str, *options: float) -> Tensor:
    """The weights of the squared errors in what the network predicts.

    An error e in ε is one of e/√SNR in x0, an error in v one of e/√(SNR + 1).
    """
    of_x0 = WEIGHTINGS[name](snr, *options)
    if prediction_type == "epsilon":
        # at a level without signal an error in ε says nothing of x0, and min-SNR's limit is 1
        return torch.where(snr > 0, of_x0 / snr.clamp(min=torch.finfo(snr.dtype).tiny), torch.ones_like(snr))
    return of_x0 / (snr + 1) if prediction_type == "v_prediction" else of_x0


# -- how an error is measured ----------------------------------------------------------------------------------------


def squared(error: Tensor) -> Tensor:
    """e²."""
    return error.square()


def huber(error: Tensor, delta: float = 0.1) -> Tensor:
    """2δ·(√(e² + δ²) - δ): e² near zero, 2δ·|e| far from it (pseudo-Huber, Charbonnier et al. 1997), which outliers
    in the data disturb less.
    """
    square = error.square()
    return 2 * delta * square / ((square + delta**2).sqrt() + delta)  # without a difference of nearly equal numbers


def mean_of_rows(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over each row; where there is a mask, ``(rows, 1, …)`` in [0, 1], the mean under it."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.expand_as(values)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1e-8)


# -- what is done to the noise ---------------------------------------------------------------------------------------


def with_offset(noise: Tensor, normal: Draw, strength: float) -> Tensor:
    """ε + s·(one number per row and channel), so that the mean brightness is learned too (Guttenberg 2023, "Diffusion
    with offset noise").
    """
    flat = (*noise.shape[:2], *[1] * (noise.ndim - 2))
    return noise + strength * normal(flat).to(noise)


def multi_resolution(noise: Tensor, normal: Draw, discount: float = 0.3, levels: int = 6) -> Tensor:
    """ε + Σ dᵏ·(noise of 1/2ᵏ of the size), brought back to variance 1 (Whitaker 2023, "Multi-resolution noise")."""
    height, width = noise.shape[-2:]
    whole, scale = noise, 1.0
    for k in range(1, levels + 1):
        size = (height >> k, width >> k)
        if min(size) < 1:
            break
        small = normal((*noise.shape[:-2], *size)).to(noise)
        whole = whole + discount**k * torch.nn.functional.interpolate(small, (height, width), mode="nearest")
        scale += discount ** (2 * k)
    return whole / math.sqrt(scale)


def perturbed(noise: Tensor, normal: Draw, strength: float) -> Tensor:
    """ε + s·normal, from which x is made while ε stays the target (Ning et al. 2023, 2301.11706, algorithm 1)."""
    return noise + strength * normal(tuple(noise.shape)).to(noise)


def dream(
    predicted: Tensor, noise: Tensor, noised: Tensor, scheduler: Any, timesteps: Tensor, detail: float, kind: str
) -> tuple[Tensor, Tensor]:
    """x and target moved by what the network gets wrong: DREAM (Zhou et al. 2023, 2312.00210, algorithm 1).

    Args:
        predicted: what the network says of ``noised``, without gradients.
        noise, noised: ε and x.
        detail: p of the paper; the share is λ = √(1 - ᾱ)^p.
        kind: the network's ``prediction_type``; the paper has ε alone.

    Returns:
        x and ε, each ``+ λ·√(1-ᾱ)·Δε`` and ``+ λ·Δε``.

    Raises:
        ValueError: the network does not predict ε.
    """
    if kind != "epsilon":
        raise ValueError(f"DREAM is for networks that predict epsilon; this one predicts {kind!r}")
    alpha_bar = scheduler.alphas_cumprod.to(noise.device, torch.float32)[timesteps.long()]
    sigma = (1 - alpha_bar).sqrt().view(-1, *[1] * (noise.ndim - 1))
    moved = sigma**detail * (noise - predicted)
    return noised + sigma * moved, noise + moved
