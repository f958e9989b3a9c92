"""What weights in a prompt do to pictures of the model in the box, as its reader sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

import langevin
from langevin.zoo.reader import read

SHAPES = Path(langevin.__file__).parent / "zoo" / "weights" / "shapes" / "model_index.json"
pytestmark = pytest.mark.skipif(not SHAPES.exists(), reason="no weights here")
SEEDS = 12


@pytest.fixture(scope="module")
def pipe():
    pipe = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures_with(pipe, prompt: str, colour: str, **options) -> int:
    images = pipe(prompt, num_inference_steps=12, seed=0, num_images_per_prompt=SEEDS, **options).images
    return sum(any(thing.colour == colour for thing in read(image).things) for image in images)


def test_a_thing_weighed_down_goes_and_the_other_stays(pipe):
    prompts = ["a red circle and (a blue square)" + weight for weight in ("0", "1")]
    blue, red = ([pictures_with(pipe, prompt, colour) for prompt in prompts] for colour in ("blue", "red"))
    assert blue[0] <= SEEDS // 4
    assert blue[1] >= SEEDS * 3 // 4
    assert min(red) >= SEEDS * 3 // 4


def test_a_blend_moves_from_one_colour_to_the_other(pipe):
    green = [
        pictures_with(pipe, f'("a red circle", "a green square").blend({1 - share}, {share})', "green")
        for share in (0.1, 0.9)
    ]
    assert green[0] <= SEEDS // 4
    assert green[1] >= SEEDS * 3 // 4


def test_literal_prompts_do_not_weigh(pipe):
    """Without a grammar, brackets and numbers are only odd characters, and the square stays."""
    assert pictures_with(pipe, "a red circle and (a blue square)0", "blue", prompt_weighting="none") >= SEEDS // 2
