"""Calls with arguments of every kind: they make pictures, or end in one line that says what is allowed.

``LANGEVIN_FUZZ=20 pytest tests/pipelines/test_call_fuzz.py`` tries twenty times as many.
"""

from __future__ import annotations

import inspect
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import langevin
from langevin import ImageStart, Inpaint, SelfAttentionGuidance, Windows

CASES = int(150 * float(os.environ.get("LANGEVIN_FUZZ", "1")))
UNHURRIED = settings(
    max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
SIZE = dict(height=16, width=16, num_inference_steps=1)

NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.floats(-2, 20),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**9, -(10**30), 1e308, 2**64, 0.5, 1.0]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.float64("nan"), np.bool_(True), np.uint8(3), np.array(2)]),
)
THINGS = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.text(max_size=12),
    st.sampled_from([b"x", "64", "a red circle", "\ud800", "((((", "[a:b:0.5]", {}, {"a": 1}, {1, 2}]),
    st.lists(st.one_of(NUMBERS, st.text(max_size=4), st.none()), max_size=3),
    st.builds(
        lambda shape, scale: torch.randn(shape) * scale,
        st.lists(st.integers(0, 9), max_size=5),
        st.sampled_from([1.0, 1e30, math.nan]),
    ),
    st.builds(lambda shape: np.zeros(shape), st.lists(st.integers(0, 9), max_size=4)),
    st.builds(
        lambda mode, w, h: Image.new(mode, (w, h)),
        st.sampled_from(["RGB", "L", "RGBA", "P", "I", "F", "CMYK"]),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    st.sampled_from([SelfAttentionGuidance(0.5), [Windows(4, 2)], [3], ["x"], (SelfAttentionGuidance(0.5),)]),
    st.sampled_from([torch.Generator(), [torch.Generator(), torch.Generator()], torch.float16, torch.device("cpu")]),
)
LARGE = {"height", "width", "num_images_per_prompt", "batch_size", "num_inference_steps", "view_batch_size"}
"""A large number there is no mistake, but takes long."""


@pytest.fixture(scope="module")
def pipes(tiny_sd_folder):
    base = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    names = ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionPanoramaPipeline"]
    made = [base, *(getattr(langevin, name).from_pipe(base) for name in names)]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made


def usual(pipe):
    """Arguments that work."""
    grey, mask = Image.new("RGB", (16, 16), "grey"), Image.new("L", (16, 16), 255)
    pictures = {"image": grey, "mask_image": mask, "window_size": 8, "window_stride": 4}
    takes = inspect.signature(pipe.__call__).parameters
    return {"prompt": "a", **SIZE, **{name: value for name, value in pictures.items() if name in takes}}


@pytest.mark.filterwarnings("ignore")
@UNHURRIED
@given(data=st.data())
def test_calls_work_or_say_in_one_line_what_is_wrong(pipes, data):
    pipe = data.draw(st.sampled_from(pipes))
    takes = list(inspect.signature(pipe.__call__).parameters)
    names = data.draw(st.lists(st.sampled_from(takes), min_size=1, max_size=2, unique=True))
    given = {name: data.draw(THINGS, label=name) for name in names}
    for name in LARGE & given.keys():
        if isinstance(given[name], (int, float, np.number)) and given[name] > 64:
            given[name] = 64
    try:
        made = pipe(**{**usual(pipe), **given})
    except ValueError as error:
        said = str(error)
    else:
        said = f"{len(made[0])} pictures"
    assert said.strip()
    assert "\n" not in said


@pytest.mark.filterwarnings("ignore")
@UNHURRIED
@given(data=st.data())
def test_guiders_work_or_say_in_one_line_what_is_wrong(pipes, data):
    pixels = torch.zeros(1, 3, 16, 16)
    known = {ImageStart: {"image": pixels}, Inpaint: {"image": pixels, "mask": pixels[:, :1]}}
    kinds = [
        langevin.AttendAndExcite,
        langevin.ClassifierFreeGuidance,
        langevin.CFGPlusPlus,
        langevin.GuidanceRescale,
        ImageStart,
        Inpaint,
        langevin.SafeGuidance,
        SelfAttentionGuidance,
        Windows,
        langevin.DistilledGuidance,
    ]
    kind = data.draw(st.sampled_from(kinds))
    takes = [name for name in inspect.signature(kind).parameters if not name.startswith("_")]
    name = data.draw(st.sampled_from(takes))
    usual_ones = {langevin.AttendAndExcite: {"token_indices": [1]}, langevin.SafeGuidance: {"concept": "b"}}
    value = data.draw(THINGS, label=name)
    try:
        guider = kind(**{**known.get(kind, {}), **usual_ones.get(kind, {}), name: value})
        said = f"{len(pipes[0]('a', **SIZE, guiders=[guider], output_type='pt').images)} pictures"
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
