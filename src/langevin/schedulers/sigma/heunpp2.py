"""Heun++: the σ-solver of that name in the Stable Diffusion interfaces (Carzit's sd-webui-samplers-scheduler, 2023).

Karras et al. 2022 (arXiv:2206.00364), algorithm 1, looks one level ahead; this looks two, and trusts a slope the less,
the lower the σ at which it was found.
"""

from __future__ import annotations

from langevin.schedulers.sigma.recipe import SlopeStagedRun, Stage, StagedScheduler, euler
from langevin.schedulers.weights import Recipe


class HeunPP2Scheduler(StagedScheduler):
    """Three network calls a step, at the next two levels as well; two for the last step but one, one for the last.

    x ← x + h·(w_1·d_1 + w_2·d_2 + w_3·d_3) with w_k = σ_k/(3·σ_0) for k = 2 and 3, w_1 the rest, and σ_0 where the run
    as planned begins. As w_2 and w_3 vanish with σ, the method is of first order. n steps are 3n - 3 calls (one step,
    one call).

    Args: those of every solver of the family, see :class:`langevin.schedulers.sigma.recipe.RecipeScheduler`.

        >>> run = HeunPP2Scheduler(use_karras_sigmas=True).plan(10)  # 27 calls
        >>> x = torch.randn(1, 4, 8, 8) * run.init_noise_sigma
        >>> for i, t in enumerate(run.timesteps):
        ...     x = run.step(network(run.scale_model_input(x, i), t), i, x).prev_sample
    """

    order = 3
    run_class = SlopeStagedRun

    def _stages(self, sigmas: list[float]) -> list[list[Stage]]:
        last = len(sigmas) - 2
        return [self._step_from(sigmas[i : i + 3], sigmas[0], last - i) for i in range(last + 1)]

    def _step_from(self, sigmas: list[float], first: float, to_go: int) -> list[Stage]:
        """The step from the first of ``sigmas`` to the second; the third is the level after that, if there is one."""
        sigma, target, *after = sigmas
        h = target - sigma
        stages = [Stage(sigma, euler(sigma, target))]
        if to_go == 0:
            return stages
        ahead = [target] if to_go == 1 else [target, *after]
        w = [level / (len(ahead) + 1) / first for level in ahead]
        w = [1.0 - sum(w), *w]
        if to_go > 1:
            stages.append(Stage(target, Recipe(1.0, (after[0] - target, h))))
        return [*stages, Stage(ahead[-1], Recipe(1.0, [h * share for share in reversed(w)]))]
