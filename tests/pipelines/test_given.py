"""Arguments of calls: names, order, defaults, checks and documentation, for every pipeline."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import langevin
from langevin import SelfAttentionGuidance, StableDiffusionPipeline
from langevin.checks import Range, checked
from langevin.pipelines.given import Given, documented

NOT_CALLED = ("DiffusionPipeline", "VersatileDiffusionPipeline")  # in the reference the latter's methods are
PIPELINES = [
    name for name in langevin.__all__ if "Pipeline" in name and "Output" not in name and name not in NOT_CALLED
]


def signature(name):
    return inspect.signature(getattr(langevin, name).__call__)


def reference(name):
    """The reference's class of that name."""
    diffusers = pytest.importorskip("diffusers")
    if name == "ScoreSdeVpPipeline":
        pytest.skip("the reference has it no more")
    return getattr(diffusers, name)


@pytest.mark.parametrize("name", PIPELINES)
def test_arguments_stand_in_the_references_order(name):
    theirs = [p.name for p in inspect.signature(reference(name).__call__).parameters.values()
              if p.kind is p.POSITIONAL_OR_KEYWORD][1:]  # fmt: skip
    ours = [p.name for p in signature(name).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert ours == theirs


@pytest.mark.parametrize("name", PIPELINES)
def test_the_references_defaults_hold(name):
    theirs = inspect.signature(reference(name).__call__).parameters
    differ = {}
    for own in list(signature(name).parameters.values())[1:]:
        if own.name in theirs and theirs[own.name].default is not inspect.Parameter.empty:
            default = theirs[own.name].default
            if own.default != (tuple(default) if isinstance(default, list) else default):
                differ[own.name] = own.default
    # None: what the checkpoint names, else the reference's; a step is 1 where nothing is said
    assert set(differ) <= {"guidance_scale", "image_guidance_scale", "callback_steps"}
    assert set(differ.values()) <= {None}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_argument_is_documented_and_typed(name):
    method = getattr(langevin, name).__call__
    for own in list(inspect.signature(method).parameters.values())[1:]:
        assert own.annotation is not own.empty, own
        entries = [line.split(":")[0] for line in method.__doc__.splitlines() if line.startswith("    ")]
        assert any(own.name in map(str.strip, entry.split(",")) for entry in entries), own.name


@pytest.mark.parametrize("name", PIPELINES)
def test_a_misspelt_argument_is_refused_with_the_nearest_right_name(name):
    cls = getattr(langevin, name)
    steps = any(parameter.endswith("num_inference_steps") for parameter in signature(name).parameters)
    right = "num_inference_steps" if steps else "eta"
    wrong = right.replace("ence", "ense").replace("eta", "etaa")
    with pytest.raises(TypeError, match=rf"takes no argument {wrong!r}; nearest: (\w+_)?{right}") as e:
        cls.__call__(object.__new__(cls), **{wrong: 3})
    assert "\n" not in str(e.value)


def test_type_checkers_see_every_argument(tmp_path):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from langevin.pipelines.stable_diffusion.img2img import StableDiffusionImg2ImgPipeline
        from langevin.pipelines.unconditional import DDIMPipeline

        def use(pipe: StableDiffusionImg2ImgPipeline, plain: DDIMPipeline) -> None:
            pipe("a cat", object(), 0.6, num_inference_steps=20, guidance_scale=3.0, seed=7, clip_skip=1)
            plain(4, num_inference_steps=10, eta=0.5)
            pipe("a cat", num_inferense_steps=20)
            pipe("a cat", strength="much")
            plain(eta="0.5")
        """)
    )
    root = langevin.__file__.rsplit("/", 2)[0]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports", "--cache-dir",
         str(tmp_path / "cache"), str(script)],
        capture_output=True, text=True, env={"MYPYPATH": root, "PATH": ""}, check=False,
    )  # fmt: skip
    errors = [line for line in run.stdout.splitlines() if "error:" in line]
    assert len(errors) == 3, run.stdout + run.stderr
    assert 'Unexpected keyword argument "num_inferense_steps"' in errors[0]
    assert 'Argument "strength"' in errors[1]
    assert 'Argument "eta"' in errors[2]


WRONG = {
    "height": ["64", 64.5, True, 0, -8, 10**9],
    "num_inference_steps": [True, 1.5, 0, "20", 10**9, float("nan")],
    "guidance_scale": [float("inf"), float("nan"), "7", True, [7.5]],
    "guidance_rescale": [float("nan"), -0.1, 1.5, None],
    "eta": [float("nan"), 2.0, "0"],
    "num_images_per_prompt": [0, 1.0, None, "1"],
    "guiders": [SelfAttentionGuidance(), [3], "x", None, {"a": 1}],
    "control": [["x"], 5],
    "generator": [5, ["x"], [], "seed"],
    "seed": [1.5, "7", -1, 2**64, [1, 2, 3], True],
    "output_type": ["jpeg", 3, None],
    "clip_skip": [-1, 1.0, "1"],
    "callback_steps": [0, "1", 1.5],
    "safety_action": ["nothing", None],
    "timesteps": [["a"], [float("nan")], "abc", 5],
    "prompt": [5, [], ["a", None], [5]],
    "ip_adapter_image": ["a.png"],
    "return_dict": ["no", 1, None],
}


@pytest.fixture(scope="module")
def pipe():
    pipe = StableDiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_one_clear_line(pipe, name, value):
    arguments = {"prompt": "a circle", "num_inference_steps": 1, name: value}
    with pytest.raises(ValueError, match=name) as caught:
        pipe(**arguments)
    assert "\n" not in str(caught.value)


def test_numpys_numbers_are_numbers(pipe):
    plain = pipe("a circle", num_inference_steps=2, seed=7, guidance_scale=2.0).images[0]
    numpys = pipe(
        "a circle", num_inference_steps=np.int64(2), seed=np.int64(7), guidance_scale=np.float64(2.0),
        pair_images=np.bool_(False),
    ).images[0]  # fmt: skip
    assert numpys.tobytes() == plain.tobytes()
    assert numpys.settings == plain.settings
    assert pipe("a circle", num_inference_steps=1, seed=np.array([7])).images[0].settings["seed"] == 7


def test_checks_say_what_is_allowed():
    from typing import Annotated

    assert checked("x", np.float32(0.5), Annotated[float, Range(0, 1)]) == 0.5
    with pytest.raises(ValueError, match="x is 2; it must be a finite number, 0 to 1"):
        checked("x", 2, Annotated[float, Range(0, 1)])
    with pytest.raises(ValueError, match="x is a Tensor; it must be a whole number or None"):
        checked("x", torch.ones(3), int | None)
    for beyond in (math.nan, math.inf, 1e308, -(10**400), np.float64(1e39)):  # tensors are in single precision
        with pytest.raises(ValueError, match="a finite number"):
            checked("x", beyond, float)
    assert checked("x", 1e38, float) == 1e38


def test_arguments_are_not_changed_by_a_call():
    given = Given(seed=3)
    with pytest.raises(AttributeError):
        given.seed = 4
    assert given.changed(seed=4).seed == 4
    assert "Args:" in documented(None, Given)
