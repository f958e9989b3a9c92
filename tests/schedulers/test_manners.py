"""As the reference has it, or as published: where that is chosen, and that the choice holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import langevin
from langevin import DDIMScheduler, LMSDiscreteScheduler, PNDMScheduler
from langevin.schedulers import catalogue
from tests.schedulers.meaning_checks import sample
from tests.schedulers.scheduler_checks import distance, familiar, planned

SOURCE = Path(langevin.__file__).parent / "schedulers"
BOTH = [name for name in catalogue.names() if "as_published" in getattr(langevin, name).run_options]


@pytest.mark.parametrize("name", catalogue.names())
def test_a_class_that_takes_as_published_has_two_manners_and_no_other_has(name):
    assert (getattr(langevin, name)._manners is not None) == (name in BOTH)


@pytest.mark.parametrize("name", BOTH)
def test_the_reference_s_manner_is_the_default(name):
    scheduler = getattr(langevin, name)(**({"num_vec_classes": 9} if name == "VQDiffusionScheduler" else {}))
    runs = [scheduler.plan(7, **options).timesteps for options in ({}, {"as_published": False})]
    assert runs[0] == runs[1]


def test_the_choice_is_made_in_one_place_and_no_solver_asks_which_it_was():
    questions = (ast.If, ast.IfExp, ast.While)
    asked = [
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, questions) and "as_published" in ast.dump(node.test)
    ]
    assert asked == ["manners.py"]


def test_every_deviation_says_what_is_published_and_what_the_reference_has():
    rooms = sorted(SOURCE.glob("*/deviations.py"))
    assert len(rooms) == 7
    for path in rooms:
        text = path.read_text()
        assert "reference" in text, path
        assert re.search(r"[Pp]ublished|papers'", text), path
        assert "arXiv" in text or "k-diffusion" in text, path


def test_a_late_start_by_the_familiar_methods_keeps_the_manner_that_set_timesteps_was_given():
    """``step`` names its own options, and is not to forget the others."""
    scheduler = LMSDiscreteScheduler()
    ways = [
        through(scheduler, 12, 5, set_with={"num_inference_steps": 12, "as_published": published})
        for published in (True, False)
        for through in (familiar, planned)
    ]
    assert distance(ways[0], ways[1]) < 1e-6
    assert distance(ways[2], ways[3]) < 1e-6
    assert distance(ways[0], ways[2]) > 1e-4


def test_a_step_is_the_sum_that_its_weights_say():
    run = DDIMScheduler(clip_sample=False).plan(7, eta=0.5)
    x, output, z = torch.randn(3, 2, 4, 4, 4, dtype=torch.float64)
    weights = run.weights[2]
    want = weights.of_x * x + weights.of_output * output + weights.of_noise * z
    torch.testing.assert_close(run.step(output, 2, x, lambda like: z).prev_sample, want)


def test_a_run_of_pndm_as_published_that_begins_after_its_runge_kutta_steps_is_multistep_from_there_on():
    point = torch.linspace(-0.9, 0.9, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    for start in (12, 13, 20):
        run = PNDMScheduler(set_alpha_to_one=True).plan(30, as_published=True)
        x = run.add_noise(point, torch.randn_like(point), start)
        end = sample(run, x, lambda *_: point, start=start)
        torch.testing.assert_close(end, point, rtol=0, atol=1e-8)
