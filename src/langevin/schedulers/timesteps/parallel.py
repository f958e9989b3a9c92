"""DDIM and DDPM with steps at many noise levels at once, for sampling that is parallel in time: Shih, Belkhale, Ermon,
Sadigh & Anari 2023, "Parallel Sampling of Diffusion Models" (ParaDiGMS), arXiv:2305.16317.

There a window of levels goes through the network as one batch, again and again, until the trajectory stands still
(algorithm 1). So a step takes a timestep per image, and adds no noise: that was drawn before the iteration began.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from langevin.schedulers import prediction as predictions
from langevin.schedulers.arithmetic import cast
from langevin.schedulers.timesteps.ddim import DDIMRun, DDIMScheduler
from langevin.schedulers.timesteps.ddpm import DDPMRun, DDPMScheduler
from langevin.schedulers.timesteps.deviations import PARALLEL_STEPS


def step_each(run: DDIMRun | DDPMRun, prediction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Move image k of x over call k's step, all at once and without noise.

    Args:
        run: with as many calls as there are images. Their levels need not follow each other.
        prediction: the network's output at ``run.timesteps``, one each; twice x's channels where the network also
            predicts the variance, which has no say here.
        x: (len(run), ...).
    """

    def mix(*terms: tuple[Sequence[float], torch.Tensor]) -> torch.Tensor:
        """Σ a·part, where a has a number for each image."""
        total = None
        for numbers, part in terms:
            if any(numbers):
                a = torch.tensor(numbers, dtype=dtype, device=x.device).view(-1, *[1] * (x.ndim - 1))
                total = a * part if total is None else total.addcmul_(a, cast(part, dtype))
        return torch.zeros_like(x, dtype=dtype) if total is None else total

    dtype = torch.promote_types(x.dtype, torch.float32)
    if prediction.shape[1] == 2 * x.shape[1]:
        prediction = prediction[:, : x.shape[1]]
    of_x, of_output, of_x0, _ = zip(*run.weights, strict=True)
    terms = [(of_x, x), (of_output, prediction)]
    if run.limit is not None:
        p, q = zip(*map(run.to_x0, run.levels), strict=True)
        terms.append((of_x0, run.limit(mix((p, x), (q, prediction)))))
    return mix(*terms).to(x.dtype)


class DDIMParallelScheduler(DDIMScheduler):
    """:class:`DDIMScheduler` with :meth:`batch_step_no_noise`. Config, runs and steps are the same.

    >>> scheduler = DDIMParallelScheduler(clip_sample=False)
    >>> scheduler.set_timesteps(50)
    >>> t = scheduler.timesteps[:8]  # eight levels of one trajectory
    >>> x = scheduler.batch_step_no_noise(network(x, t), t, x)  # x: (8, channels, height, width)
    """

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False, *, as_published: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """One step of every image from its own timestep.

        Args:
            model_output: the network's output, (batch, ...).
            timesteps: (batch,), of 0..T-1.
            sample: (batch, ...), each image at its own timestep.
            eta: must be 0: without noise there is only the deterministic step.
            use_clipped_model_output: recompute ε from the bounded x0.
            as_published: go where :meth:`step` goes, for ``timesteps`` of the run. Without it, a step goes to t - T//n,
                and at the end to the clean image whatever ``set_alpha_to_one`` says, as in the reference
                implementation.

        Returns:
            The samples, each one step on.
        """
        if eta != 0.0:
            raise ValueError(f"eta={eta}: a step without noise is deterministic; leave eta at 0, or use step()")
        if self.num_inference_steps is None:
            raise ValueError(f"{type(self).__name__} has no timesteps yet: call set_timesteps(steps) first")
        told = torch.as_tensor(timesteps).flatten().tolist()
        run = DDIMRun(
            told, *PARALLEL_STEPS.of(as_published)(self, told), self.config.prediction_type,
            predictions.limiter(self._own), use_clipped_model_output=use_clipped_model_output,
        )  # fmt: skip
        return step_each(run, model_output, sample)


class DDPMParallelScheduler(DDPMScheduler):
    """:class:`DDPMScheduler` with :meth:`batch_step_no_noise`. Config, runs and steps are the same.

    >>> scheduler = DDPMParallelScheduler()
    >>> t = scheduler.timesteps[:8]  # eight levels of one trajectory
    >>> mean = scheduler.batch_step_no_noise(network(x, t), t, x)  # x: (8, channels, height, width)
    """

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: torch.Tensor, timesteps: torch.Tensor, sample: torch.Tensor, *, as_published: bool = False
    ) -> torch.Tensor:
        """The mean of every image's step from its own timestep (equation 7 of arXiv:2006.11239).

        Args:
            model_output: the network's output, (batch, ...).
            timesteps: (batch,), of 0..T-1.
            sample: (batch, ...), each image at its own timestep.
            as_published: go where :meth:`step` goes, for ``timesteps`` of the run. Without it, a step goes to t - T//n,
                which is the same for "leading" spacing and not quite for others, as in the reference implementation.

        Returns:
            The samples, each one step on, without the noise that belongs there.
        """
        told = torch.as_tensor(timesteps).flatten().tolist()
        run = DDPMRun(
            told, *PARALLEL_STEPS.of(as_published)(self, told), self.config.prediction_type,
            predictions.limiter(self._own), variance_type="fixed_small",
        )  # fmt: skip
        return step_each(run, model_output, sample)
