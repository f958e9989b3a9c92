"""Noise schedules: how much noise each training timestep carries.

A diffusion model is trained on x_t = α_t·x0 + σ_t·ε. The variance-preserving family has α_t² = ᾱ_t and
σ_t² = 1 - ᾱ_t with ᾱ_t = Π(1 - β_s), so a schedule is a list of β (Ho et al. 2020, arXiv:2006.11239, section 2).
Samplers that count in σ (Karras et al. 2022, arXiv:2206.00364) divide by α_t: x = x0 + σ·ε, σ = sqrt((1 - ᾱ)/ᾱ).

Networks were trained with tables rounded to fp32, so the tables of β, ᾱ, σ and log σ are built in fp32, bit for bit as
everybody builds them, and read into Python floats (fp64) once; everything computed from them afterwards is fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

SMALLEST_ALPHA_BAR = 2.0**-24  # fp16's smallest number: stands for 0 where σ must be finite


class SettingError(NotImplementedError, ValueError):
    """A scheduler's setting that no run can be made of. The reference implementation raises the one here, the other
    there."""


class Level(NamedTuple):
    """One noise level: x = alpha·x0 + sigma·ε."""

    alpha: float
    sigma: float

    @classmethod
    def of_alpha_bar(cls, alpha_bar: float) -> Level:
        """Variance-preserving level: alpha² = ᾱ, sigma² = 1 - ᾱ."""
        return cls(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))

    @classmethod
    def of_sigma(cls, sigma: float) -> Level:
        """Variance-preserving level whose ratio sigma/alpha is the given σ."""
        norm = math.hypot(sigma, 1.0)
        return cls(1.0 / norm, sigma / norm)

    @property
    def ratio(self) -> float:
        """σ as k-diffusion counts it; infinite where nothing of the image is left."""
        return self.sigma / self.alpha if self.alpha else math.inf


def alpha_of_step(level: Level, target: Level) -> float:
    """α = ᾱ_t/ᾱ_s of the step from t to s, the product of the α between; β = 1 - α.

    The quotient is rounded to fp32, as the tables are: for small β that rounding can be seen in the image, and
    everybody's images were made with it.
    """
    return float(np.float32(level.alpha**2) / np.float32(target.alpha**2))


def rise(level: Level, target: Level) -> tuple[float, float]:
    """What multiplies x and what the noise in a step of the training process from a level up to a noisier one."""
    keep = target.alpha / level.alpha
    return keep, math.sqrt(max(1.0 - keep**2, 0.0))


def _linear(count: int, start: float, end: float) -> torch.Tensor:
    return torch.linspace(start, end, count, dtype=torch.float32)


def _scaled_linear(count: int, start: float, end: float) -> torch.Tensor:
    """sqrt(β) is linear: the latent diffusion models' schedule (arXiv:2112.10752)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32).square()


def _sigmoid(count: int, start: float, end: float) -> torch.Tensor:
    """β follows a logistic curve over [-6, 6] (GeoDiff, arXiv:2203.02923)."""
    return torch.linspace(-6, 6, count).sigmoid() * (end - start) + start


def _from_alpha_bar(alpha_bar: Callable[[float], float], count: int, ceiling: float = 0.999) -> torch.Tensor:
    """β_i = 1 - ᾱ((i+1)/T)/ᾱ(i/T), at most ``ceiling`` (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.2)."""
    curve = [alpha_bar(i / count) for i in range(count + 1)]
    return torch.tensor([min(1 - after / before, ceiling) for before, after in pairwise(curve)])


def _cosine_alpha_bar(u: float) -> float:
    """Equation 17 of arXiv:2102.09672."""
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(u: float) -> float:
    """Log-SNR drawn from a Laplace distribution (Hang et al. 2024, arXiv:2407.03297)."""
    half_log_snr = -0.5 * math.copysign(1.0, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
    snr = math.exp(half_log_snr)
    return math.sqrt(snr / (1 + snr))


BETA_SCHEDULES: dict[str, Callable[[int, float, float], torch.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: _from_alpha_bar(_cosine_alpha_bar, count),
    "sigmoid": _sigmoid,
    "exp": lambda count, start, end: _from_alpha_bar(lambda u: math.exp(-12 * u), count),
    "laplace": lambda count, start, end: _from_alpha_bar(_laplace_alpha_bar, count),
}


def rescale_to_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(ᾱ) so that the last level is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alpha_bar = ((root - last) * (first / (first - last))).square()
    return 1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """β_t and what follows from it, for timesteps 0 (least noise) to T-1 (most).

    ``betas``, ``alphas`` and ``alphas_cumprod`` are fp32 tensors of shape (T,); the rest is fp64.
    """

    betas: torch.Tensor
    alphas_cumprod: torch.Tensor

    @classmethod
    def from_config(
        cls,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | np.ndarray | None = None,
        rescale_betas_zero_snr: bool = False,
        smallest_alpha_bar: float | None = None,
    ) -> NoiseSchedule:
        """Build the schedule that the config keys of the same names describe.

        ``smallest_alpha_bar`` replaces the last ᾱ of a schedule rescaled to zero SNR, for samplers that count in σ
        and would divide by it (``SMALLEST_ALPHA_BAR`` makes σ_max 4096).

        Raises SettingError for an unknown ``beta_schedule``, and for β that are not 0 to 1.
        """
        said = f"beta_start={beta_start}, beta_end={beta_end}, beta_schedule={beta_schedule!r}"
        if trained_betas is not None:
            betas, said = torch.as_tensor(np.array(trained_betas, dtype=np.float32)), "trained_betas"
        elif beta_schedule in BETA_SCHEDULES:
            betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps, beta_start, beta_end)
        else:
            raise SettingError(
                f"beta_schedule={beta_schedule!r} is not known; allowed: {', '.join(map(repr, BETA_SCHEDULES))}, "
                "or give the betas themselves as trained_betas"
            )
        if betas.ndim != 1 or not len(betas) or not bool(((betas >= 0) & (betas <= 1)).all()):
            ends = f"betas from {float(betas.min()):.4g} to {float(betas.max()):.4g}" if betas.numel() else "no betas"
            raise SettingError(f"{said} in the config: {ends}; a list of numbers from 0 to 1 is needed")
        if rescale_betas_zero_snr:
            betas = rescale_to_zero_terminal_snr(betas)
        alphas_cumprod = (1.0 - betas).cumprod(0)
        if rescale_betas_zero_snr and smallest_alpha_bar is not None:
            alphas_cumprod[-1] = smallest_alpha_bar
        return cls(betas, alphas_cumprod)

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def alphas(self) -> torch.Tensor:
        return 1.0 - self.betas

    def alphas_cumprod_on(self, device: torch.device | str) -> torch.Tensor:
        """ᾱ on a device, copied there once."""
        copies = self.__dict__.setdefault("_copies", {self.alphas_cumprod.device: self.alphas_cumprod})
        device = torch.device(device)
        if device not in copies:
            copies[device] = self.alphas_cumprod.to(device)
        return copies[device]

    @cached_property
    def alpha_bar(self) -> list[float]:
        """ᾱ_t as plain numbers."""
        return self.alphas_cumprod.tolist()

    @cached_property
    def sigmas(self) -> np.ndarray:
        """σ_t = sqrt((1 - ᾱ_t)/ᾱ_t), ascending, shape (T,); finite where ᾱ is 0 (there as if it were 2⁻²⁴)."""
        alpha_bar = self.alphas_cumprod.clone()
        alpha_bar[alpha_bar == 0.0] = SMALLEST_ALPHA_BAR
        return ((1 - alpha_bar) / alpha_bar).sqrt().numpy().astype(np.float64)

    def level(self, timestep: int | float) -> Level:
        """The variance-preserving level of a timestep; between two timesteps, log σ is interpolated."""
        if not 0 <= timestep <= len(self) - 1:
            raise ValueError(f"timestep {timestep} is outside 0..{len(self) - 1}, the range the model was trained on")
        below = int(timestep)
        if below == timestep:
            return Level.of_alpha_bar(self.alpha_bar[below])
        return Level.of_sigma(math.exp(np.interp(timestep, np.arange(len(self)), self._log_sigmas)))

    def sigma_at(self, timesteps: Sequence[float]) -> list[float]:
        """σ at (fractional) timesteps, interpolated linearly in σ and held at the ends."""
        return np.interp(np.asarray(timesteps, dtype=np.float64), np.arange(len(self)), self.sigmas).tolist()

    def timestep_of(self, sigma: float) -> float:
        """The fractional timestep whose log σ is log ``sigma``, held inside 0..T-1."""
        return float(np.interp(math.log(max(sigma, 1e-10)), self._log_sigmas, np.arange(len(self))))

    @cached_property
    def _log_sigmas(self) -> np.ndarray:
        return np.log(np.maximum(self.sigmas, 1e-10).astype(np.float32)).astype(np.float64)
