"""What the reference implementation does otherwise than published, for solvers that count in training timesteps.

Everything here is a pair, of which :meth:`SchedulerMixin.plan` chooses one by ``as_published``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from langevin.schedulers import prediction as predictions
from langevin.schedulers.manners import Manners
from langevin.schedulers.noise import Level, NoiseSchedule, rise
from langevin.schedulers.run import Run
from langevin.schedulers.scheduler import SchedulerMixin
from langevin.schedulers.timesteps.pndm_calls import Calls, calls_between, calls_by_the_stride

# -- DDIM, up and down: where a step goes ----------------------------------------------------------------------------


def to_the_next(
    scheduler: SchedulerMixin, visited: Sequence[float], steps: int, following: list[Level], end: Level
) -> list[Level]:
    """Published: to the next level that the run visits (arXiv:2010.02502, section 4.2), which is ``following``."""
    return following


def by_the_stride(
    scheduler: SchedulerMixin, visited: Sequence[float], steps: int, following: list[Level], end: Level
) -> list[Level]:
    """The reference: T//n timesteps down, whatever the spacing; to ``end`` from below that.

    For "leading" spacing that is the same; for others not quite, where n does not divide T.
    """
    stride = len(scheduler) // steps
    return [scheduler.noise_schedule.level(t - stride) if t >= stride else end for t in visited]


STEPS = Manners(reference=by_the_stride, published=to_the_next)


def each_as_the_run_goes(scheduler: SchedulerMixin, told: list[int]) -> tuple[list[Level], list[Level]]:
    """Right: the parallel step of each image is the one that ``step`` takes from its timestep (arXiv:2305.16317,
    algorithm 1), by the levels and targets of the run."""
    run: Run = scheduler.run
    calls = [run.index_of(t) for t in told]
    return [run.levels[i] for i in calls], [run.targets[i] for i in calls]


def each_by_the_stride(scheduler: SchedulerMixin, told: list[int]) -> tuple[list[Level], list[Level]]:
    """The reference: T//n timesteps down, and at the end to the clean image, whatever the config says."""
    levels = [scheduler.noise_schedule.level(t) for t in told]
    steps = scheduler.num_inference_steps or len(scheduler)
    return levels, by_the_stride(scheduler, told, steps, [], Level(1.0, 0.0))


PARALLEL_STEPS = Manners(reference=each_by_the_stride, published=each_as_the_run_goes)

# -- PNDM: which calls a run makes, and what it mixes ----------------------------------------------------------------


class PNDMAsPublished:
    """Published (arXiv:2202.09778, algorithm 2): steps go between the run's own levels; every output is turned into ε
    where it was made, and these ε are mixed."""

    #: a run may begin within a Runge-Kutta step, and its first call be the repetition of a step that it did not make;
    #: that is then taken for a step of its own
    begins_anywhere = False

    def calls(
        self, scheduler: SchedulerMixin, visited: list[float], levels: list[Level], targets: list[Level], warm_up: bool
    ) -> Calls:
        """The calls of a run that visits these timesteps and levels; a step from each goes to its target."""
        return calls_between(scheduler.noise_schedule, visited, levels, targets, warm_up)

    def reading(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """(r, w): what is kept of a call is r·x + w·output, here ε."""
        return predictions.to_epsilon(prediction_type, level)

    def moved(self, prediction_type: str, level: Level, transfer: tuple[float, float]) -> tuple[float, float]:
        """(a, b): a step to where φ(x, ε) is ``transfer`` is a·x + b·(the mean of what is kept)."""
        return transfer


class PNDMAsReference(PNDMAsPublished):
    """The reference mixes outputs as they come, and turns the mixture into ε where the step begins; for v-predictions
    of different timesteps that is not the same."""

    begins_anywhere = True

    def calls(
        self, scheduler: SchedulerMixin, visited: list[float], levels: list[Level], targets: list[Level], warm_up: bool
    ) -> Calls:
        """Steps go T//n timesteps down, whatever the spacing. The second call of a run is taken for the repetition of
        the first, also where the run begins late (image to image) and it is not."""
        stride = len(scheduler) // len(visited)
        return calls_by_the_stride(scheduler.noise_schedule, visited, stride, targets[-1], warm_up)

    def reading(self, prediction_type: str, level: Level) -> tuple[float, float]:
        """The output itself."""
        return 0.0, 1.0

    def moved(self, prediction_type: str, level: Level, transfer: tuple[float, float]) -> tuple[float, float]:
        """ε of the mean of outputs, at the level where the step begins."""
        (a, b), (r, w) = transfer, predictions.to_epsilon(prediction_type, level)
        return a + b * r, b * w


PNDM = Manners[PNDMAsPublished](reference=PNDMAsReference(), published=PNDMAsPublished())

# -- LCM and TCD: where a run ends -----------------------------------------------------------------------------------


def lcm_ends_clean(targets: list[Level], last: Level, cut: bool) -> list[Level]:
    """Published (arXiv:2310.04378, multistep sampling): no noise is added by the last step."""
    return targets


def lcm_ends_noisy_if_cut(targets: list[Level], last: Level, cut: bool) -> list[Level]:
    """The reference: where ``strength`` cut a run out of given timesteps, the last step adds as much noise as there was
    at its beginning."""
    return [*targets[:-1], last] if cut else targets


LCM_END = Manners(reference=lcm_ends_noisy_if_cut, published=lcm_ends_clean)


def tcd_ends_as_told(noise: NoiseSchedule, told: Level) -> Level:
    """Published (arXiv:2402.19159): where the config's ``set_alpha_to_one`` says, ``told``."""
    return told


def tcd_ends_at_timestep_0(noise: NoiseSchedule, told: Level) -> Level:
    """The reference: at timestep 0, which has a little noise, whatever the config says."""
    return noise.level(0)


TCD_END = Manners(reference=tcd_ends_at_timestep_0, published=tcd_ends_as_told)

# -- RePaint: the way back up ----------------------------------------------------------------------------------------


class RePaintAsPublished:
    """Published (arXiv:2201.09865, algorithm 1, line 10): up to the very level that the network is told next, at
    once."""

    def way_up(self, noise: NoiseSchedule, passed: list[Level], place: int, stride: int) -> list[tuple[float, float]]:
        """What multiplies x and what the noise, in turn.

        Args:
            passed: the level where the step down ended, and those passed on the way up.
            place: of the level where that step began, counted from the quietest.
            stride: T//n, if the class laid the levels; 0 if they are the caller's own.
        """
        return [rise(passed[0], passed[-1])] if len(passed) > 1 else []


class RePaintAsReference(RePaintAsPublished):
    """The reference: up one timestep of training after the other, T//n of them for each level, from the timestep where
    the step down began on; that leads to a level T//n - 1 timesteps noisier than the network is told. On levels of
    one's own, which it does not know, level by level to the very one."""

    def way_up(self, noise: NoiseSchedule, passed: list[Level], place: int, stride: int) -> list[tuple[float, float]]:
        if stride == 0:
            return [rise(*move) for move in pairwise(passed)]
        return timestep_by_timestep(noise, place * stride, (len(passed) - 1) * stride)


def timestep_by_timestep(noise: NoiseSchedule, first: int, count: int) -> list[tuple[float, float]]:
    """sqrt(α) and sqrt(β) of ``count`` timesteps from the first on, in fp32: thousands of them add up."""
    reached = slice(first, first + count)
    return list(zip(noise.alphas[reached].sqrt().tolist(), noise.betas[reached].sqrt().tolist(), strict=True))


REPAINT = Manners[RePaintAsPublished](reference=RePaintAsReference(), published=RePaintAsPublished())
