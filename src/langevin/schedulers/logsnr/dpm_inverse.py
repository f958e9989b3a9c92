"""DPM-Solver's steps walked from an image up to the noise that it would be sampled from. Unlike DDIM's inversion
(:mod:`langevin.schedulers.timesteps.ddim_inverse`) this one keeps a history of predictions at their levels, so the
network is told the level that x is at.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from langevin.checkpoints.config import register_to_config
from langevin.schedulers import spacing as spacings
from langevin.schedulers.logsnr.deviations import LOGSNR, Published
from langevin.schedulers.logsnr.dpm_multistep import (
    ALGORITHMS,
    DPMMultistepRun,
    DPMSolverMultistepScheduler,
    check_solver,
)
from langevin.schedulers.run import Run


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """From an image to its noise, with the steps of :class:`DPMSolverMultistepScheduler`.

    A run begins at the least noisy level of training (a clean image has no λ) and ends at the noisiest.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, solver_order, prediction_type,
            thresholding, dynamic_thresholding_ratio, sample_max_value, solver_type, lower_order_final, euler_at_final,
            use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_flow_sigmas, flow_shift,
            lambda_min_clipped, variance_type, timestep_spacing, steps_offset: as there.
        algorithm_type: "dpmsolver++" or "dpmsolver". Stochastic ones have nothing to invert.

    Run option ``as_published``: n steps between the n + 1 levels that a run of n steps down has. Without it, as in the
    reference implementation, "trailing" spacing takes the image for what the last step down begins with, and its last
    step stays where it is, as with every sigma spacing; "leading" spacing ends at the last timestep, where no run down
    begins; with ``use_flow_sigmas`` the run goes *down*; and with Karras spacing, where small σ have the same rounded
    timestep, the run stops short by as many steps. Timesteps and sigmas of one's own are ascending; ``sigmas`` has the
    one to end at too.

        >>> run = DPMSolverMultistepInverseScheduler(beta_schedule="scaled_linear").plan(20, as_published=True)
        >>> x = encode(image)
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(x, t), i, x).prev_sample
        >>> back = DPMSolverMultistepScheduler(beta_schedule="scaled_linear").plan(sigmas=run.sigmas[::-1])
    """

    run_options = ("as_published",)  # type: ignore[assignment]
    _rounds = ("karras",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: np.ndarray | list[float] | None = None,
        solver_order: int = 2, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
        euler_at_final: bool = False, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, use_flow_sigmas: bool = False, flow_shift: float = 1.0,
        lambda_min_clipped: float = -inf, variance_type: str | None = None, timestep_spacing: str = "linspace",
        steps_offset: int = 0,
    ):  # fmt: skip
        check_solver(self, ALGORITHMS)
        self.noise_schedule = self._build_noise_schedule()

    def _plan(  # type: ignore[override]
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None,
        manner: Published,
    ) -> DPMMultistepRun:  # fmt: skip
        for name, given in (("timesteps", timesteps), ("sigmas", sigmas)):
            spacings.refuse_unless_ascending(name, given or [])
        if sigmas is not None or timesteps is not None:
            told, spaced, _ = self._visit_sigmas(steps, timesteps, sigmas, None)
            return self._run_over(told, [*spaced, self._noisiest if sigmas is None else float(sigmas[-1])], manner)
        known = manner if self._spacing is None else LOGSNR.published  # the reference knows no other spacings
        return self._run_over(*known.upwards(self, steps), manner)

    @property
    def _noisiest(self) -> float:
        """σ of the noisiest timestep that ``lambda_min_clipped`` leaves."""
        return float(self.noise_schedule.sigmas[len(self) - 1 - self._clipped()])

    def _run_over(
        self, visited: list[float], sigmas: list[float], manner: Published = LOGSNR.reference
    ) -> DPMMultistepRun:
        if self.config.algorithm_type.startswith("sde"):
            raise ValueError(
                f"algorithm_type={self.config.algorithm_type!r} adds noise at every step, which cannot be undone: an "
                "inversion needs algorithm_type='dpmsolver++' or 'dpmsolver'"
            )
        return super()._run_over(visited, sigmas, manner)

    def _whole(self) -> Run:
        down = super()._whole()
        return self._run_over([*down.timesteps[::-1]], [*down.sigmas[-2::-1], down.sigmas[0]])
