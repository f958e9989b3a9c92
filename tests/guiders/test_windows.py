"""Windows: what is cut is put together again, and a network that looks at single places does not notice."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from langevin import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    Windows,
)
from langevin.denoiser import NetworkDenoiser
from langevin.guiders.windows import cut, stitch, window_boxes
from langevin.loop import denoise
from tests.helpers import in_threads

PLACES = [(8, 20, 8, 4), (8, 19, 8, 4), (13, 11, 8, 3), (8, 8, 8, 4), (5, 30, 8, 4), (16, 16, 8, 8), (9, 17, 8, 1)]


def covered(boxes, height, width):
    count = torch.zeros(height, width)
    for top, bottom, left, right in boxes:
        for column in range(left, right):
            count[top:bottom, column % width] += 1
    return count


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_windows_cover_every_place(place, circular):
    height, width, size, _ = place
    boxes = window_boxes(*place, circular)
    assert len(set(boxes)) == len(boxes)
    assert covered(boxes, height, width).min() >= 1
    if width > size:
        assert all(right - left == size for _, _, left, right in boxes)
    if not circular:
        assert max(right for *_, right in boxes) == width


def test_circular_windows_cover_every_column_alike():
    count = covered(window_boxes(8, 20, 8, 4, circular=True), 8, 20)
    assert count.unique().tolist() == [2.0]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("place", [*PLACES, (8, 6, 16, 4)])
def test_what_is_cut_is_put_together_again(place, circular, smooth):
    whole = torch.randn(2, 3, *place[:2])
    boxes = window_boxes(*place, circular)
    torch.testing.assert_close(stitch([cut(whole, box) for box in boxes], boxes, *place[:2], smooth), whole)


def test_overlaps_are_averaged_and_places_without_a_window_are_zero():
    parts = [torch.full((1, 2, 3), value) for value in (1.0, 4.0)]
    made = stitch(parts, [(0, 2, 0, 3), (0, 2, 2, 5)], 2, 6)
    assert made[0, 0].tolist() == [1.0, 1.0, 2.5, 4.0, 4.0, 0.0]


def test_smooth_windows_count_less_towards_their_edges():
    parts = [torch.full((1, 1, 4), value) for value in (0.0, 1.0)]
    made = stitch(parts, [(0, 1, 0, 4), (0, 1, 2, 6)], 1, 7, smooth=True)[0, 0]
    inner, outer = (math.sin(math.pi * place / 4) ** 2 for place in (1.5, 0.5))
    crossing = [outer / (inner + outer), inner / (inner + outer)]
    torch.testing.assert_close(made, torch.tensor([0.0, 0.0, *crossing, 1.0, 1.0, 0.0]))


def test_many_windows_in_half_precision_lose_nothing():
    part = torch.full((1, 1, 4), 2.007, dtype=torch.float16)
    made = stitch([part] * 3000, [(0, 1, 0, 4)] * 3000, 1, 4)
    assert made.dtype == torch.float16
    torch.testing.assert_close(made, part)


class OnePlace(torch.nn.Module):
    """A network whose prediction for a place is a function of what it is told about that place. It counts its calls."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x, t, *, text, deep, return_dict, attention=None):
        self.rows.append(len(x))
        x, more = x[:, :4], x[:, 4:]
        if attention is not None:
            attention(x, None, None, None, self)
        assert deep["map"].shape[-2:] == x.shape[-2:]
        prediction = torch.sin(2 * x) + more * deep["map"] + text.mean((1, 2))[:, None, None, None] * deep["same"]
        return (prediction,)


def setting(network, windows, shape=(2, 4, 8, 20)):
    """What :meth:`Windows.prepare` reads of a call: here one with maps in the branches' conditions."""
    batch, _, height, width = shape
    random = torch.Generator().manual_seed(1)

    def branch(k):
        spatial = torch.randn(batch, 1, height, width, generator=random)
        # a text as long and as wide as x is high and wide is no map
        text = torch.randn(batch, height, width, generator=random)
        return {
            "text": text,
            "channels": {"place": spatial},
            "deep": {"map": spatial * k, "same": torch.tensor(0.3 + k)},
        }

    def channels(x, step, names, told):
        return {**told, "deep": {**told["deep"], "same": torch.ones(len(x), 1, 1, 1)}}

    setup = SimpleNamespace(
        shape=shape,
        picture_places=lambda who: shape[-2:],
        denoiser=NetworkDenoiser(network, [channels]),
        codec=SimpleNamespace(scale_factor=2, decode=lambda x: x.repeat_interleave(2, -1)),
        branches={"positive": branch(1.0), "negative": branch(2.0)},
    )
    for told in setup.branches.values():
        told["deep"]["same"] = torch.ones(batch, 1, 1, 1)
    if windows is not None:
        windows.prepare(setup)
    return setup


def run_through(scheduler, windows, scale=3.0, shape=(2, 4, 8, 20), **options):
    network = OnePlace()
    setup = setting(network, windows, shape)
    run = scheduler.plan(6, **options)
    random = torch.Generator().manual_seed(2)
    x = torch.randn(shape, generator=random) * run.init_noise_sigma
    made = denoise(
        x,
        run,
        setup.denoiser,
        setup.branches,
        [ClassifierFreeGuidance(scale)],
        noise=lambda like: torch.randn(like.shape, generator=random),
    )
    return made, network.rows


@pytest.mark.parametrize(
    "windows", [Windows(8, 4), Windows(8, 3, batch=3), Windows(8, 4, circular=True), Windows(5, 5)]
)
@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (EulerDiscreteScheduler(), {}),
        (EulerAncestralDiscreteScheduler(), {}),  # its noise is not averaged away
        (DDIMScheduler(clip_sample=False), {"eta": 1.0}),
    ],
)
def test_a_network_that_looks_at_single_places_does_not_notice(windows, scheduler, options):
    whole, _ = run_through(scheduler, None, **options)
    seen, _ = run_through(scheduler, windows, **options)
    torch.testing.assert_close(seen, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("windows", "scale", "rows"),
    [
        (Windows(8, 4), 3.0, [4] * 4),  # 4 windows: 2 pictures, 2 branches
        (Windows(8, 4), 1.0, [2] * 4),  # no guidance: the negative branch is not asked for
        (Windows(8, 4, batch=3), 3.0, [12, 4]),
        (Windows(8, 4, batch=9), 3.0, [16]),
        (Windows(8, 4, circular=True), 1.0, [2] * 5),
        (Windows(20, 4), 3.0, [4]),  # no larger than a window: one call, as without
    ],
)
def test_the_network_is_called_once_for_each_batch_of_windows(windows, scale, rows):
    _, seen = run_through(EulerDiscreteScheduler(), windows, scale)
    assert seen == rows * 6


def test_conditions_are_cut_once_a_call_and_anew_where_they_are_replaced():
    setup = setting(OnePlace(), Windows(8, 4, batch=2))
    told = []
    inner = setup.denoiser.inner
    setup.denoiser.inner = lambda x, step, branches, attention: told.append(branches) or inner(x, step, branches)
    x, step = torch.randn(2, 4, 8, 20), SimpleNamespace(timestep=1.0)
    for _ in range(2):
        setup.denoiser(x, step, setup.branches)
    assert told[0]["positive"] is told[2]["positive"]
    assert told[0]["positive"] is not told[1]["positive"]  # other windows
    replaced = {**setup.branches, "positive": {**setup.branches["positive"], "text": torch.zeros(2, 3, 3)}}
    setup.denoiser(x, step, replaced)
    assert not told[4]["positive"]["text"].any()
    assert told[4]["negative"] is told[0]["negative"]


def test_without_maps_all_windows_are_told_the_same():
    setup = setting(OnePlace(), Windows(8, 4))
    groups = setup.denoiser._cut("a", {"text": torch.zeros(2, 3, 5)}, torch.zeros(2, 4, 8, 20))
    assert len({id(told) for told in groups}) == 1


def test_attention_functions_learn_where_the_windows_are():
    setup = setting(OnePlace(), Windows(8, 4, batch=3))
    seen = []

    def attention(q, k, v, mask, layer, names=(), views=None):
        seen.append((names, views))
        for i in range(len(names)):
            for j, box in enumerate(views):
                first = 2 * (i * len(views) + j)  # branches, then windows, then pictures
                torch.testing.assert_close(q[first : first + 2], cut(x, box))

    x = torch.randn(2, 4, 8, 20)
    setup.denoiser(x, SimpleNamespace(timestep=1.0), setup.branches, attention)
    boxes = window_boxes(8, 20, 8, 4)
    assert seen == [(("positive", "negative"), tuple(boxes[:3])), (("positive", "negative"), tuple(boxes[3:]))]


@pytest.mark.parametrize("stride", [2, 4])
def test_a_circular_picture_has_no_seam(tiny_sd_folder, stride):
    """Begun from noise turned round by a window's stride, all is turned round: no column is special."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 20, generator=torch.Generator().manual_seed(0))
    call = dict(height=16, width=40, num_inference_steps=3, output_type="latent")

    def make(turn, circular):
        windows = Windows(8, stride, circular=circular)
        return pipe("a cat", latents=noise.roll(turn, -1), guiders=[windows], **call).images

    torch.testing.assert_close(make(stride, True).roll(-stride, -1), make(0, True), atol=1e-3, rtol=1e-4)
    assert abs(make(stride, False).roll(-stride, -1) - make(0, False)).max() > 0.1


@pytest.mark.parametrize("width", [20, 6])
def test_the_decoder_of_a_circular_picture_sees_around_the_seam(width):
    latents = torch.randn(1, 4, 8, width, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1))

    def decode(x):
        return torch.nn.functional.conv2d(x, kernel, padding=1).repeat_interleave(2, -1)

    setup = SimpleNamespace(
        shape=latents.shape,
        picture_places=lambda who: latents.shape[-2:],
        codec=SimpleNamespace(decode=decode, scale_factor=2),
        denoiser=None,
    )
    Windows(width, 2, circular=True).prepare(setup)
    around = torch.cat([latents[..., -1:], latents, latents[..., :1]], -1)
    torch.testing.assert_close(setup.codec.decode(latents), decode(around)[..., 2:-2])
    assert setup.codec.scale_factor == 2


def test_guiders_serve_many_threads(tiny_sd_folder):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_folder)
    pipe.set_progress_bar_config(disable=True)
    windows = Windows(8, 4)

    def make(k):
        width = 32 + 8 * (k % 2)
        return pipe(
            "a cat", height=16, width=width, num_inference_steps=2, seed=k, output_type="pt", guiders=[windows]
        ).images

    for k, image in enumerate(in_threads(make, 4)):
        torch.testing.assert_close(image, make(k))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(size=0), "windows of 0"),
        (dict(size=8, stride=9), "every 9 latents"),
        (dict(stride=0), "every 0"),
        (dict(batch=0), "batch is 0"),
    ],
)
def test_bad_settings_get_one_clear_line(settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        Windows(**settings)
    assert "\n" not in str(caught.value)
