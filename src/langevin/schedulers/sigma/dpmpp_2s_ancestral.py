"""DPM-Solver++(2S), ancestral: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 1 with r = 1/2, followed by
noise as in Crowson's k-diffusion, ``sample_dpmpp_2s_ancestral``.
"""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

from langevin.schedulers.sigma.ancestral import ancestral_step
from langevin.schedulers.sigma.recipe import Stage, StagedScheduler, ddim
from langevin.schedulers.weights import Recipe


class DPMSolver2SAncestralScheduler(StagedScheduler):
    """Two network calls a step, the second half-way in λ = -log σ; then fresh noise. n steps are 2n - 1 calls.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options: ``eta``, how much noise (0: none, which is plain DPM-Solver++(2S)); ``s_noise``, a factor on it.

        >>> run = DPMSolver2SAncestralScheduler(use_karras_sigmas=True).plan(10)  # 19 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    order = 2
    run_options = ("eta", "s_noise")

    def _stages(self, sigmas: list[float], eta: float = 1.0, s_noise: float = 1.0) -> list[list[Stage]]:
        return [self._step_from(sigma, target, eta, s_noise) for sigma, target in pairwise(sigmas)]

    def _step_from(self, sigma: float, target: float, eta: float, s_noise: float) -> list[Stage]:
        down, up = ancestral_step(sigma, target, eta)
        if down == 0.0:
            return [Stage(sigma, ddim(sigma, 0.0, s_noise * up))]
        middle = sqrt(sigma * down)
        ratio = down / sigma
        return [
            Stage(sigma, ddim(sigma, middle)),  # line 4: u
            Stage(middle, Recipe(ratio, (1.0 - ratio, 0.0), s_noise * up)),  # line 6: x0 at u for the whole step
        ]
