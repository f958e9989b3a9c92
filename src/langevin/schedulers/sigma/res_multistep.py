"""RES, the refined exponential solver: Zhang, Song & Chen 2023, "Improved Order Analysis and Design of Exponential
Integrator for Diffusion Models Sampling", arXiv:2308.02157.
"""

from __future__ import annotations

from itertools import pairwise
from math import log

from langevin.schedulers.exponential import multistep_weights
from langevin.schedulers.sigma.ancestral import ancestral_step
from langevin.schedulers.sigma.recipe import MultistepRun, MultistepScheduler
from langevin.schedulers.weights import Recipe


class RESMultistepRun(MultistepRun):
    """x ← e^(-h)·x + ∫ e^(-(λ_next - λ))·x0(λ) dλ with the polynomial through the latest x0: algorithm 2 for two."""

    def configure(self, order: int = 2, eta: float = 0.0, s_noise: float = 1.0) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order={order}: it must be 1, 2 or 3")
        self.order, self.eta, self.s_noise = order, eta, s_noise
        super().configure()

    def recipe(self, sigmas: list[float], target: float) -> Recipe:
        down, up = ancestral_step(sigmas[0], target, self.eta)
        if down == 0.0:
            return Recipe(0.0, (1.0,), self.s_noise * up)
        h = log(sigmas[0] / down)
        lambdas = [-log(sigmas[0])]
        for later, sigma in pairwise(sigmas):  # as far back as the steps went before noise was added
            lambdas.append(lambdas[-1] - log(sigma / ancestral_step(sigma, later, self.eta)[0]))
        of_x, weights = multistep_weights(lambdas, h, h, bend=2.0)
        return Recipe(of_x, weights, self.s_noise * up)


class RESMultistepScheduler(MultistepScheduler):
    """Exponential Adams-Bashforth: the order it promises, one network call a step.

    At order 2 and without noise it is ``DPMSolverMultistepScheduler(solver_type="heun")`` in σ; the paper shows that
    this choice, and not "midpoint", meets the order conditions. At order 3 it is what DPM-Solver++ of order 3 would
    be with the exact weight of the second difference.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options: ``order``, 1 to 3; ``eta``, how much of ancestral sampling's noise (0 to 1; as in ComfyUI's
    ``res_multistep_ancestral``); ``s_noise``, a factor on it.

        >>> run = RESMultistepScheduler(use_karras_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("order", "eta", "s_noise")
    run_class = RESMultistepRun
