"""The loop, the denoiser and the guiders, on networks whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from langevin import ClassifierFreeGuidance, DDIMScheduler, EulerDiscreteScheduler, GuidanceRescale, Guider
from langevin.denoiser import NetworkDenoiser, stack_conditions
from langevin.loop import denoise
from langevin.randomness import Noise
from tests.helpers import in_threads

SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


class PointNetwork(nn.Module):
    """Predicts x0 exactly as the condition "target" says; counts its calls and rows."""

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x, t, target, return_dict=True, attention=None):
        self.rows.append(x.shape[0])
        return (target.expand_as(x),)


def scheduler(cls=DDIMScheduler, **config):
    config = {"clip_sample": False, "set_alpha_to_one": True, **config} if cls is DDIMScheduler else config
    return cls(prediction_type="sample", **SCHEDULE, **config)


def run_to(branches, guiders, network=None, steps=5, cls=DDIMScheduler, **options):
    noise = Noise.from_seeds([0, 1])
    run = scheduler(cls).plan(steps)
    x = noise.draw((2, 1, 4, 4), torch.float32, "cpu") * run.init_noise_sigma
    denoiser = NetworkDenoiser(network or PointNetwork())
    guiders = [g.begin() for g in guiders]
    return denoise(x, run, denoiser, branches, guiders, noise=noise, **options)


def target(value):
    return {"target": torch.full((2, 1, 1, 1), float(value))}


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_loop_reaches_what_a_perfect_network_predicts(cls, steps):
    x = run_to({"positive": target(0.3)}, [], steps=steps, cls=cls)
    torch.testing.assert_close(x, torch.full_like(x, 0.3), atol=1e-5, rtol=0)


def test_guidance_moves_away_from_the_negative_branch():
    x = run_to({"positive": target(0.3), "negative": target(0.1)}, [ClassifierFreeGuidance(3.0)])
    torch.testing.assert_close(x, torch.full_like(x, 0.1 + 3 * 0.2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("guidance", "rows"),
    [
        (ClassifierFreeGuidance(3.0), [4, 4, 4, 4, 4]),
        (ClassifierFreeGuidance(1.0), [2, 2, 2, 2, 2]),
        (ClassifierFreeGuidance(3.0, start=0.2, stop=0.6), [2, 4, 4, 2, 2]),
    ],
)
def test_an_idle_branch_is_not_computed(guidance, rows):
    network = PointNetwork()
    run_to({"positive": target(0.3), "negative": target(0.1)}, [guidance], network)
    assert network.rows == rows


def test_rescale_at_one_gives_back_the_positive_contrast_picture_by_picture():
    torch.manual_seed(0)
    positive = torch.randn(3, 4, 8, 8) * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    prediction = positive * 5 + 1
    guided = GuidanceRescale(1.0).combine(prediction, {"positive": positive}, positive, None)
    torch.testing.assert_close(guided.std((1, 2, 3)), positive.std((1, 2, 3)))
    assert torch.equal(GuidanceRescale(0.0).combine(prediction, {"positive": positive}, positive, None), prediction)


def test_rescale_gives_the_reference_numbers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    torch.manual_seed(0)
    positive, prediction = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8) * 3
    for scale in (0.3, 0.7, 1.0):
        ours = GuidanceRescale(scale).combine(prediction, {"positive": positive}, positive, None)
        torch.testing.assert_close(ours, rescale_noise_cfg(prediction, positive, scale))


@dataclass
class Recorder(Guider):
    """Writes down what it is asked, on itself: the loop must give each call a copy."""

    log: tuple = ()

    def before(self, x, step):
        self.log += (("before", step.index, float(step.timestep)),)
        return x

    def combine(self, prediction, predictions, x, step):
        self.log += (("combine", step.index, sorted(predictions)),)
        return prediction

    def after(self, x, step):
        self.log += (("after", step.index),)
        return x + 1


def test_guiders_have_their_three_moments_in_order_and_stack():
    guider = Recorder()
    own = guider.begin()
    network = NetworkDenoiser(PointNetwork())
    run = scheduler().plan(2)
    noise = Noise.from_seeds([0, 1])
    x = denoise(torch.zeros(2, 1, 4, 4), run, network, {"positive": target(0)}, [own, Guider().begin()], noise=noise)
    moments = [entry[0] for entry in own.log]
    assert moments == ["before", "combine", "after"] * 2
    assert guider.log == ()
    torch.testing.assert_close(x, torch.ones_like(x), atol=1e-5, rtol=0)  # the last `after` is kept


def test_a_guider_may_ask_the_network_again():
    class Twice(Guider):
        def combine(self, prediction, predictions, x, step):
            other = step.predict(x * 0, ["other"])["other"]
            return prediction + 0.5 * other

    network = PointNetwork()
    x = run_to({"positive": target(0.3), "other": target(0.4)}, [Twice()], network)
    torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-5, rtol=0)
    assert network.rows == [2] * 10


def test_a_guider_hands_an_attention_function_down_the_call():
    """The denoiser tells it whose rows it sees."""
    seen = []

    class Network(PointNetwork):
        def forward(self, x, t, target, return_dict=True, attention=None):
            seen.append(attention and attention("q", "k", "v", None, "layer"))
            return super().forward(x, t, target)

    class Watch(Guider):
        def attention(self, step):
            return (lambda *args, names: (args, names)) if step.index == 1 else None

    branches = {"positive": target(0), "negative": target(1)}
    run_to(branches, [ClassifierFreeGuidance(3.0), Watch()], Network(), steps=3)
    assert seen == [None, (("q", "k", "v", None, "layer"), ("negative", "positive")), None]


def test_start_and_stop_split_a_run_without_a_trace():
    whole = run_to({"positive": target(0.3)}, [], steps=6, cls=EulerDiscreteScheduler)
    noise = Noise.from_seeds([0, 1])
    run = scheduler(EulerDiscreteScheduler).plan(6)
    x = noise.draw((2, 1, 4, 4), torch.float32, "cpu") * run.init_noise_sigma
    for start, stop in ((0, 2), (2, 6)):
        run = scheduler(EulerDiscreteScheduler).plan(6)
        denoiser = NetworkDenoiser(PointNetwork())
        x = denoise(x, run, denoiser, {"positive": target(0.3)}, noise=noise, start=start, stop=stop)
    torch.testing.assert_close(x, whole, atol=1e-6, rtol=0)


def test_on_step_may_change_x_and_may_stop_the_run():
    seen = []

    def on_step(step, x):
        seen.append(step.index)
        return None if step.index == 2 else x

    run_to({"positive": target(0.3)}, [], steps=6, on_step=on_step)
    assert seen == [0, 1, 2]


def test_conditions_are_stacked_in_branch_order_nested_ones_too():
    a = {"h": torch.zeros(1, 2), "added": {"ids": torch.zeros(1, 3)}, "flag": None}
    b = {"h": torch.ones(1, 2), "added": {"ids": torch.ones(1, 3)}, "flag": None}
    stacked = stack_conditions([a, b])
    assert stacked["h"].tolist() == [[0, 0], [1, 1]]
    assert stacked["added"]["ids"][:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("other", [{"more": torch.zeros(2, 1)}, {"target": torch.ones(2, 1, 4, 4)}])
def test_branches_of_other_names_or_shapes_go_through_apart(other):
    """A prompt of two windows and a concept of one, say."""

    class Network(PointNetwork):
        def forward(self, x, t, target, more=None, return_dict=True):
            return super().forward(x, t, target)

    network = Network()
    branches = {"positive": target(0.3), "negative": {**target(0.1), **other}}
    alike = {"positive": target(0.3), "negative": {**target(0.1)}}
    x = run_to(branches, [ClassifierFreeGuidance(3.0)], network, steps=2)
    assert network.rows == [2, 2, 2, 2]
    if "more" in other:
        torch.testing.assert_close(x, run_to(alike, [ClassifierFreeGuidance(3.0)], steps=2))


def test_channels_are_joined_to_x_and_inputs_say_more():
    seen = []

    class Network(PointNetwork):
        def forward(self, x, t, target, residual=None, return_dict=True):
            seen.append((x.shape[1], x[:, 1:].mean().item(), residual))
            return (target.expand_as(x[:, :1]),)

    def more(x, step, names, told):
        assert x.shape[1] == 1, "inputs see x without the channels that are joined to it"
        return {**told, "residual": (step.index, names, told["maps"]["hint"].shape[0])}

    told = {"channels": {"five": torch.full((2, 2, 4, 4), 5.0)}, "maps": {"hint": torch.zeros(2, 1)}, **target(0.0)}
    denoiser = NetworkDenoiser(Network(), [more])
    noise = Noise.from_seeds([0, 1])
    x = torch.zeros(2, 1, 4, 4)
    branches = {"positive": told, "negative": dict(told)}
    denoise(x, scheduler().plan(2), denoiser, branches, [ClassifierFreeGuidance(2.0)], noise=noise)
    assert seen == [(3, 5.0, (i, ("negative", "positive"), 4)) for i in range(2)]


def test_eight_threads_on_one_scheduler_and_one_guider_give_the_serial_result():
    shared = scheduler(EulerDiscreteScheduler)
    guiders = [ClassifierFreeGuidance(3.0), GuidanceRescale(0.5)]
    torch.manual_seed(0)
    patterns = torch.randn(2, 1, 4, 4)

    def once(seed):
        noise = Noise.from_seeds([seed, seed + 1])
        run = shared.plan(10)
        x = noise.draw((2, 1, 4, 4), torch.float32, "cpu") * run.init_noise_sigma
        branches = {"positive": {"target": patterns}, "negative": {"target": -patterns}}
        own = [g.begin() for g in guiders]
        return denoise(x, run, NetworkDenoiser(PointNetwork()), branches, own, noise=noise)

    serial = [once(k) for k in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(serial, in_threads(once), strict=True))


def test_bad_guidance_interval_is_refused():
    with pytest.raises(ValueError, match="start <= stop"):
        ClassifierFreeGuidance(3, start=0.7, stop=0.2)
