"""Safe guidance: the paper's equations, what is computed when, and what it does to a trained model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from langevin import (
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ImageStart,
    SafeGuidance,
    StableDiffusionPipeline,
    Windows,
)
from langevin.zoo.reader import read
from tests.helpers import in_threads


def step(index, start=0, total=10):
    return SimpleNamespace(index=index, start=start, total=total, progress=index / total)


def prepared(guider, guidance=None, branches=("positive", "negative")):
    """A guider as it is in a call of whose guiders it is one."""
    guidance = guidance or ClassifierFreeGuidance(4.0)
    setup = SimpleNamespace(
        guiders=[guidance, guider],
        branches={name: {"text": name, "channels": "picture"} for name in branches},
        encode_text=lambda text: {"text": text},
    )
    guider.prepare(setup)
    return guider, setup


def combined(guider, outputs, index, guidance=None, start=0):
    guidance = guidance or ClassifierFreeGuidance(4.0)
    guided = guidance.combine(outputs["positive"], outputs, None, step(index, start))
    return guider.combine(guided, outputs, None, step(index, start))


def outputs(seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    names = ("positive", "negative", "safety")
    return {name: (torch.randn(2, 4, 3, 3, generator=random) * 0.1).to(dtype) for name in names}


def test_it_follows_the_equations_of_the_paper():
    scale, warmup, threshold, momentum_scale, beta = 3.0, 2, 0.02, 0.5, 0.7
    guider, _ = prepared(SafeGuidance("red", scale, warmup, threshold, momentum_scale, beta))
    momentum = torch.zeros(2, 4, 3, 3)
    for index in range(5):
        given = outputs(index)
        p, n, s = given["positive"], given["negative"], given["safety"]
        mu = torch.where(p - s < threshold, (scale * (p - s).abs()).clamp(max=1), 0)  # 6
        gamma = mu * (s - n) + momentum_scale * momentum  # 4 and 7
        momentum = beta * momentum + (1 - beta) * gamma  # 8
        expected = n + 4.0 * ((p - n) - (gamma if index >= warmup else 0))  # 3
        torch.testing.assert_close(combined(guider, given, index), expected, atol=1e-6, rtol=1e-5)


def test_it_may_stand_before_guidance():
    guidance = ClassifierFreeGuidance(4.0)
    first, last = SafeGuidance("red", warmup_steps=0), SafeGuidance("red", warmup_steps=0)
    setup = SimpleNamespace(guiders=[first, guidance], branches={"positive": {}, "negative": {}}, encode_text=dict)
    setup.encode_text = lambda text: {}
    first.prepare(setup)
    prepared(last, guidance)
    given = outputs()
    before = guidance.combine(first.combine(given["positive"], given, None, step(3)), given, None, step(3))
    torch.testing.assert_close(before, combined(last, given, 3, guidance))


def test_half_precision_neither_overflows_nor_loses_the_momentum():
    single, _ = prepared(SafeGuidance("red", 5000, 0, 1.0, 0.5, 0.7))
    half, _ = prepared(SafeGuidance("red", 5000, 0, 1.0, 0.5, 0.7))
    for index in range(4):
        rounded = {name: value * 100 for name, value in outputs(index, torch.float16).items()}
        expected = combined(single, {name: value.float() for name, value in rounded.items()}, index)
        made = combined(half, rounded, index)
        assert made.dtype == torch.float16
        assert half._momentum.dtype == torch.float32
        torch.testing.assert_close(made.float(), expected, rtol=4e-3, atol=0.2)


@pytest.mark.parametrize(
    ("guider", "guidance", "asked"),
    [
        (SafeGuidance("red", warmup_steps=2), ClassifierFreeGuidance(4.0), range(10)),  # momentum in the warm-up
        (SafeGuidance("red", warmup_steps=2, momentum_scale=0.0), ClassifierFreeGuidance(4.0), range(2, 10)),
        (SafeGuidance("red", scale=1.0), ClassifierFreeGuidance(4.0), ()),
        (SafeGuidance("red"), ClassifierFreeGuidance(1.0), ()),
        (SafeGuidance("red"), ClassifierFreeGuidance(4.0), ()),  # the run ends with the warm-up
        (SafeGuidance("red", warmup_steps=9), ClassifierFreeGuidance(4.0, start=0.3, stop=0.6), (3, 4, 5)),
        (SafeGuidance("red", warmup_steps=9), CFGPlusPlus(0.6), range(10)),
    ],
)
def test_the_concept_is_computed_only_where_it_counts(guider, guidance, asked):
    prepared(guider, guidance)
    assert [k for k in range(10) if "safety" in guider.needs(step(k))] == list(asked)


def test_the_warm_up_counts_from_where_the_run_begins():
    guider, _ = prepared(SafeGuidance("red", warmup_steps=2, momentum_scale=0.0))
    assert [k for k in range(4, 10) if guider.needs(step(k, start=4))] == [6, 7, 8, 9]


def test_its_branch_has_all_that_the_positive_one_is_told_but_the_text():
    _, setup = prepared(SafeGuidance("red"))
    assert setup.branches["safety"] == {"text": "red", "channels": "picture"}
    second = SafeGuidance("blue")
    setup.guiders.append(second)
    second.prepare(setup)
    assert setup.branches["safety 1"]["text"] == "blue"
    assert setup.branches["safety"]["text"] == "red"


def test_without_guidance_it_says_that_it_does_nothing(caplog):
    for options in (dict(branches=("positive",)), dict(guidance=SimpleNamespace())):
        guider, setup = prepared(SafeGuidance("red"), **options)
        assert not guider.needs(step(9))
        assert "safety" not in setup.branches
        assert "guidance_scale must be above 1" in caplog.text
        caplog.clear()


@pytest.fixture(scope="module")
def tiny(tiny_sd_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows_of(pipe, *guiders, num_inference_steps=5, **options):
    """How many rows each call of the network has, and the picture."""
    rows = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        call = dict(num_inference_steps=num_inference_steps, seed=3, output_type="pt", **options)
        return rows, pipe("a cat", guiders=guiders, **call).images
    finally:
        hook.remove()


def test_network_calls(tiny):
    late = dict(warmup_steps=2)
    assert rows_of(tiny, SafeGuidance("ugly", **late))[0] == [3] * 5
    assert rows_of(tiny, SafeGuidance("ugly", momentum_scale=0.0, **late))[0] == [2, 2, 3, 3, 3]
    assert rows_of(tiny, SafeGuidance("ugly", momentum_scale=0.0, **late), Windows(4, 4))[0][:9] == [2] * 8 + [3]
    assert rows_of(tiny, SafeGuidance("ugly"), guidance_scale=1)[0] == [1] * 5
    assert rows_of(tiny, SafeGuidance("ugly", **late), SafeGuidance("bad", **late))[0] == [4] * 5


@pytest.mark.parametrize("off", [SafeGuidance("ugly", scale=0), SafeGuidance("ugly", scale=1), SafeGuidance("ugly")])
def test_off_is_exactly_not_having_it(tiny, off):
    """The last is on, but its warm-up of 10 steps is longer than the run."""
    assert torch.equal(rows_of(tiny, off)[1], rows_of(tiny)[1])


def test_it_changes_pictures_in_combination(tiny):
    """With image to image, in windows, and with a second concept."""
    random = torch.Generator().manual_seed(0)
    start = ImageStart(torch.rand(1, 3, 16, 16, generator=random) * 2 - 1, 0.8)
    for others in ([], [start], [Windows(4, 4)], [SafeGuidance("bad", warmup_steps=1)], [start, Windows(4, 4)]):
        _, without = rows_of(tiny, *others, num_inference_steps=3)
        _, having = rows_of(tiny, *others, SafeGuidance("ugly", warmup_steps=1), num_inference_steps=3)
        assert abs(having - without).max() > 1e-3, others


def test_a_guider_serves_many_threads(tiny):
    guider = SafeGuidance("ugly", warmup_steps=1)

    def make(k):
        return tiny("a cat", num_inference_steps=2, seed=k, output_type="pt", guiders=[guider]).images

    for k, image in enumerate(in_threads(make, 4)):
        torch.testing.assert_close(image, make(k))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(scale=-1), "scale=-1"),
        (dict(warmup_steps=-2), "warmup_steps=-2"),
        (dict(momentum_scale=-0.1), "momentum_scale=-0.1"),
        (dict(momentum_beta=1.5), "momentum_beta=1.5"),
    ],
)
def test_bad_settings_get_one_clear_line(settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        SafeGuidance("red", **settings)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def shapes():
    pipe = StableDiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)

    def make(prompt, seeds, *guiders):
        images = pipe([prompt] * len(seeds), seed=seeds, num_inference_steps=12, guiders=guiders).images
        return [read(image).things for image in images]

    return make


AWAY_FROM_RED = SafeGuidance("red", 5000, 0, 1.0, 0.5, 0.7)  # the paper's strongest setting


def test_a_trained_model_keeps_away_from_the_concept(shapes):
    """Of 40 pictures of "a star" with seeds from 100 on, these came out red."""
    seeds = [100, 101, 103, 107, 126, 127, 128, 134]

    def red(readings):
        return sum(thing.colour == "red" for things in readings for thing in things)

    before, after = shapes("a star", seeds), shapes("a star", seeds, AWAY_FROM_RED)
    assert red(before) >= 4
    assert red(after) <= red(before) / 2
    assert sum(thing.shape == "star" for things in after for thing in things) >= 6


def test_a_trained_model_still_makes_what_has_nothing_to_do_with_the_concept(shapes):
    for things in shapes("a blue square", [1, 2, 3], AWAY_FROM_RED):
        assert [(thing.colour, thing.shape) for thing in things] == [("blue", "square")]
