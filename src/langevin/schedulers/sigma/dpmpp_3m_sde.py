"""DPM-Solver++(3M) SDE: Crowson's k-diffusion, ``sample_dpmpp_3m_sde``, after Lu et al. 2022, "DPM-Solver++",
arXiv:2211.01095, sections 4 and 5.
"""

from __future__ import annotations

from math import expm1, log, sqrt

from langevin.schedulers.exponential import multistep_weights
from langevin.schedulers.sigma.recipe import MultistepRun, MultistepScheduler
from langevin.schedulers.weights import Recipe


class DPMSolver3MSDERun(MultistepRun):
    """x ← e^(-h')·x + h'·φ_1·D0 + h'·φ_2·D1 + h'·φ_3·D2 + s·z, with h' = (1 + η)·h and φ_k at -h'."""

    order = 3

    def configure(self, eta: float = 1.0, s_noise: float = 1.0) -> None:
        if eta < 0.0:
            raise ValueError(f"eta={eta} must be at least 0 (deterministic); 1 is the reverse SDE")
        self.eta, self.s_noise = eta, s_noise
        super().configure()

    def recipe(self, sigmas: list[float], target: float) -> Recipe:
        if target == 0.0:
            return Recipe(0.0, (1.0,))
        h = log(sigmas[0] / target)
        lambdas = [-log(sigma) for sigma in sigmas]
        of_x, weights = multistep_weights(lambdas, h, (1.0 + self.eta) * h, bend=1.0)
        return Recipe(of_x, weights, self.s_noise * target * sqrt(max(-expm1(-2.0 * self.eta * h), 0.0)))


class DPMSolver3MSDEScheduler(MultistepScheduler):
    """Third-order differences, one network call a step, fresh noise at every step but the last.

    With ``eta=1`` it is DPMSolverMultistepScheduler's algorithm_type="sde-dpmsolver++" of solver_order=3, solver_type=
    "heun", lower_order_final=False and the run option ``as_published``; but it counts in σ and takes any ``eta``. The
    weight of the second difference is the published one, half the integral; so without noise its error falls with the
    second power of the step, and not the third (for that, see :class:`RESMultistepScheduler`).

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

    Run options: ``eta``, how much noise: 0 is the probability-flow equation, 1 the reverse SDE; ``s_noise``, a factor
    on what is added.

        >>> run = DPMSolver3MSDEScheduler(use_exponential_sigmas=True).plan(20)
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x, torch.randn_like).prev_sample
    """

    run_options = ("eta", "s_noise")
    run_class = DPMSolver3MSDERun
