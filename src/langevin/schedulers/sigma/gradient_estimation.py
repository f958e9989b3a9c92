"""Gradient estimation: Permenter & Yuan 2023, "Interpreting and Improving Diffusion Models from an Optimization
Perspective", arXiv:2306.04848, section 5.

ε points from x away from the image, like the gradient of half the squared distance to all images. Two of them in a
row, weighed so that their common error cancels, point better.
"""

from __future__ import annotations

from langevin.schedulers.sigma.recipe import MultistepRun, MultistepScheduler, euler
from langevin.schedulers.weights import Recipe


class GradientEstimationRun(MultistepRun):
    """x ← x + (σ_next - σ)·(γ·ε_t + (1 - γ)·ε_{t+1}); algorithm 2."""

    slopes = True
    order = 2

    def configure(self, gamma: float = 2.0) -> None:
        self.gamma = gamma
        super().configure()

    def recipe(self, sigmas: list[float], target: float) -> Recipe:
        if len(sigmas) == 1:
            return euler(sigmas[0], target)
        h = target - sigmas[0]
        return Recipe(1.0, (self.gamma * h, (1.0 - self.gamma) * h))


class GradientEstimationScheduler(MultistepScheduler):
    """DDIM with the latest two ε instead of one: less error at few steps, at no further network call.

    First order, as DDIM is, for fixed γ. On evenly spaced σ, γ = 1.5 makes it Adams-Bashforth of order 2.

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run option: ``gamma``, the γ above; 1 is DDIM. The paper takes 2.

        >>> run = GradientEstimationScheduler(beta_schedule="scaled_linear").plan(10)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    run_options = ("gamma",)
    run_class = GradientEstimationRun
