"""Prompts that change during a run: the forms, their steps, and the conditions that the network sees."""

from __future__ import annotations

import gc
import itertools
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import langevin
from langevin.guiders.prompt_schedule import PromptSchedule
from langevin.guiders.step import Step
from langevin.prompts.edited import edited_conditions
from langevin.prompts.editing import merge_schedules, prompt_schedule

# what AUTOMATIC1111 makes of each over 10 steps: (text, how many steps it holds)
EDITS = {
    "test": [("test", 10)],
    "a [b:3]": [("a ", 3), ("a b", 7)],
    "a [b: 3]": [("a ", 3), ("a b", 7)],
    "a [b::3] c": [("a b c", 3), ("a  c", 7)],
    "a [[[b]]:2]": [("a ", 2), ("a [[b]]", 8)],
    "[(a:2):3]": [("", 3), ("(a:2)", 7)],
    "a [b : c : 1] d": [("a b  d", 1), ("a  c  d", 9)],
    "a[b:[c:d:2]:1]e": [("abe", 1), ("ace", 1), ("ade", 8)],
    "a [unbalanced": [("a [unbalanced", 10)],
    "a [b:.5] c": [("a  c", 5), ("a b c", 5)],
    "((a][:b:c [d:3]": [("((a][:b:c ", 3), ("((a][:b:c d", 7)],
    "[a|(b:1.1)]": [("a", 1), ("(b:1.1)", 1)] * 5,
    "[fe|]male": [("female", 1), ("male", 1)] * 5,
    "[a|b|c]": [("a", 1), ("b", 1), ("c", 1)] * 3 + [("a", 1)],
    "[a|[b:c:4]]": [("a", 1), ("b", 1), ("a", 1), ("b", 1), *[("a", 1), ("c", 1)] * 3],
    "[[a|b]:c:3]": [("a", 1), ("b", 1), ("a", 1), ("c", 7)],
    # at the ends of the run
    "[a:b:0]": [("b", 10)],
    "[a:b:10]": [("a", 10)],
    "[a:b:1.0]": [("a", 10)],
    "[a:b:99]": [("a", 10)],
    "[a:b:-1]": [("b", 10)],
    "[a:b:0.99]": [("a", 9), ("b", 1)],
}
PLAIN = ["[a]", "[a:b]", "[a:b:c:3]", "[a:3", "a:3]", "[:3]", "[::3]", "[a|b:0.5]", "[smile :):0.5]", "[a:b:c]",
         "1~2", "[~]", "[a(b:3]", "[]", "a | b", "(a:b:3)"]  # fmt: skip


@pytest.mark.parametrize("grammar", ["compel", "a1111", "comfyui"])
@pytest.mark.parametrize("prompt", EDITS)
def test_edits_happen_at_the_steps_of_automatic1111(prompt, grammar):
    expected, at = [], 0
    for text, steps in EDITS[prompt]:
        expected.append((at, text))
        at += steps
    assert at == 10
    assert prompt_schedule(prompt, 10, grammar) == expected


@pytest.mark.parametrize("prompt", PLAIN)
def test_what_is_no_form_stays_as_it_is(prompt):
    for grammar in ("compel", "a1111"):
        assert prompt_schedule(prompt, 10, grammar) == [(0, prompt)]


@pytest.mark.parametrize("prompt", [*EDITS, *PLAIN, r"\[a:b:3]", "(a:1~2)", "(a)1~2"])
def test_without_a_grammar_all_is_text(prompt):
    assert prompt_schedule(prompt, 10, "none") == [(0, prompt)]


@pytest.mark.parametrize("prompt", [r"\[a:b:3]", r"\[a:b:3\]", r"\[a|b]"])
def test_a_backslash_takes_a_forms_meaning_away(prompt):
    assert prompt_schedule(prompt, 10, "a1111") == [(0, prompt)]  # this grammar resolves it itself
    assert prompt_schedule(prompt, 10, "compel") == [(0, prompt.replace("\\", ""))]
    assert prompt_schedule(r"\[a\] \(b\)", 10) == [(0, r"\[a\] \(b\)")]  # compel's own business


def test_weights_slide_from_the_first_step_to_the_last():
    assert prompt_schedule("(a b)1~2 c", 5) == [(k, f"(a b){1 + k / 4:.3f} c") for k in range(5)]
    assert prompt_schedule("(a: 2 ~ -.5) c", 6, "a1111") == [(k, f"(a:{2 - k / 2:.3f}) c") for k in range(6)]
    assert prompt_schedule("(a)1~2", 1) == [(0, "(a)1.000")]
    assert prompt_schedule("[x:(a:1~2):2]", 4, "comfyui") == [(0, "x"), (2, "(a:1.667)"), (3, "(a:2.000)")]
    for prompt in (r"(a\)1~2", "a)1~2", "(a:1~2)", "(a) 1~2", "(a)1 ~2"):
        assert prompt_schedule(prompt, 5) == [(0, prompt)]
    for prompt in (r"(a:1~2\)", "a:1~2)", "(a)1~2", "(a 1~2)", "[a:1~2]"):
        assert prompt_schedule(prompt, 5, "a1111") == [(0, prompt)]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"'other'.*'compel', 'a1111'"):
        prompt_schedule("a", 5, "other")
    with pytest.raises(ValueError, match="steps is 0"):
        prompt_schedule("[a:b:1]", 0)


def test_schedules_of_a_batch_are_merged():
    schedules = [prompt_schedule(p, 10) for p in ("[a:b:3]", "c", "[d:e:5]f", "[g:h:3]")]
    assert merge_schedules(schedules) == [
        (0, ["a", "c", "df", "g"]),
        (3, ["b", "c", "df", "h"]),
        (5, ["b", "c", "ef", "h"]),
    ]


ODD = st.lists(st.sampled_from([*"[]():|\\ab1.~ ", ":3]", ":0.5]", "[", "[", "1~2", ")1~2"]), max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(prompt=ODD, steps=st.integers(1, 12), grammar=st.sampled_from(["compel", "a1111"]))
def test_any_text_has_a_schedule(prompt, steps, grammar):
    schedule = prompt_schedule(prompt, steps, grammar)
    firsts = [first for first, _ in schedule]
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    assert firsts[-1] < steps
    assert all(a != b for (_, a), (_, b) in itertools.pairwise(schedule))


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(alphabet=st.characters(exclude_characters="[~"), max_size=60))
def test_text_without_brackets_is_itself(prompt):
    assert prompt_schedule(prompt, 9) == [(0, prompt)]


@pytest.mark.parametrize(
    "unit", ["[", "]", "[a:b:0.5]", "\\", ":", "([", "[a:", "[a|b]", ":0.5]", "(a:1~2)", "[[a:1]", "[1"]
)
def test_time_is_linear(unit):
    def seconds(count):
        gc.disable()
        try:
            begin = time.process_time()
            prompt_schedule("[" + unit * count, 2, "a1111")
            return time.process_time() - begin
        finally:
            gc.enable()

    short, long = (min(seconds(count) for _ in range(3)) for count in (2_000, 10_000))
    assert long < 12 * max(short, 1e-3)  # squared, it would be 25 times


def test_depth_is_no_matter():
    deep = 5_000
    assert prompt_schedule("[" * deep + "a" + ":1]" * deep, 3) == [(0, ""), (1, "a")]
    assert prompt_schedule("[" * deep + "a", 3) == [(0, "[" * deep + "a")]


# -- the guider


def walk(guider, total, branches=None):
    """Which condition of the positive branch each network call of a run would see."""
    guider = guider.begin()
    branches = branches if branches is not None else {"positive": {"encoder_hidden_states": None, "other": 1}}
    seen = []
    for index in range(total):
        step = Step(index, total, 0.0, None, branches, None, None)
        guider.before(torch.zeros(1), step)
        seen.append(branches["positive"]["encoder_hidden_states"])
        assert branches["positive"].get("other") == 1
    return "".join(map(str, seen))


def entries(*pairs):
    return [(first, {"encoder_hidden_states": text}) for first, text in pairs]


def test_conditions_change_at_their_steps():
    guider = PromptSchedule({"positive": entries((0, "a"), (3, "b"), (4, "c"))}, steps=6)
    assert walk(guider, 6) == "aaabcc"
    assert walk(guider, 6) == "aaabcc"  # nothing is left over from a run before
    assert walk(guider, 12) == "aaaaaabbcccc"  # two network calls a step
    assert walk(guider, 11) == "aaaaaabbccc"  # and one fewer at the end, as Heun's method has it


def test_branches_that_a_run_does_not_have_are_passed_over():
    guider = PromptSchedule({"positive": entries((0, "a")), "negative": entries((0, "n"))}, steps=2)
    branches = {"positive": {"other": 1}}
    assert walk(guider, 2, branches) == "aa"
    assert list(branches) == ["positive"]


def test_a_callbacks_condition_holds_until_the_next_entry():
    guider = PromptSchedule({"positive": entries((0, "a"), (2, "b"))}, steps=4).begin()
    branches = {"positive": {}}
    seen = []
    for index in range(4):
        guider.before(torch.zeros(1), Step(index, 4, 0.0, None, branches, None, None))
        seen.append(branches["positive"]["encoder_hidden_states"])
        if index == 0:
            branches["positive"] = {"encoder_hidden_states": "callback"}
    assert seen == ["a", "callback", "b", "b"]


@pytest.mark.parametrize(
    ("steps", "firsts", "said"), [(0, [0], "steps"), (3, [], "begin"), (3, [1], "begin"), (3, [0, 2, 1], "rise")]
)
def test_schedules_without_a_beginning_or_an_order_are_refused(steps, firsts, said):
    with pytest.raises(ValueError, match=said):
        PromptSchedule({"positive": entries(*((first, "x") for first in firsts))}, steps=steps)


# -- conditions of a call


class Encoder:
    """Encodes a text as two rows of its first letter; remembers what it was asked."""

    def __init__(self, negative=True):
        self.negative, self.asked = negative, []

    def __call__(self, prompt, negative_prompt):
        self.asked.append((prompt, negative_prompt))
        prompts = [prompt] if isinstance(prompt, str) else prompt
        negatives = [negative_prompt or ""] * len(prompts) if not isinstance(negative_prompt, list) else negative_prompt
        branches = {"positive": prompts, "negative": negatives} if self.negative else {"positive": prompts}
        return {name: {"states": self.rows(texts)} for name, texts in branches.items()}

    def rows(self, texts):
        codes = torch.tensor([ord(text[0]) if text else 32 for text in texts])
        return codes.repeat_interleave(2)[:, None, None].expand(-1, 3, 4)


def letters(conditions):
    assert conditions["states"].shape[1:] == (3, 4)
    return "".join(map(chr, conditions["states"][:, 0, 0].tolist()))


@pytest.mark.parametrize("prompt", ["a cat", ["a", "b"]])
@pytest.mark.parametrize("negative", [None, "n", ["n", "m"]])
def test_prompts_without_editing_reach_the_encoder_as_they_are(prompt, negative):
    encode = Encoder()
    if isinstance(prompt, str) and isinstance(negative, list):
        negative = negative[:1]
    branches, guider = edited_conditions(encode, prompt, negative, 10)
    assert guider is None
    assert encode.asked == [(prompt, negative)]
    assert letters(branches["positive"]) == ("aa" if isinstance(prompt, str) else "aabb")


def test_each_distinct_text_is_encoded_once_for_the_whole_run():
    encode = Encoder()
    branches, guider = edited_conditions(encode, ["[a|b]", "[b:c:3]", "a"], "[n:m:2]", 5)
    ((prompts, negatives),) = encode.asked
    assert sorted(prompts) == ["a", "b", "c"]
    assert set(negatives) == {"n", "m"}
    seen = {"positive": [], "negative": []}
    guider = guider.begin()
    for index in range(5):
        guider.before(torch.zeros(1), Step(index, 5, 0.0, None, branches, None, None))
        for name in seen:
            seen[name].append(letters(branches[name])[::2])
            assert letters(branches[name])[1::2] == seen[name][-1]  # both pictures of a prompt
    assert seen["positive"] == ["aba", "bba", "aba", "bca", "aca"]
    assert seen["negative"] == ["nnn", "nnn", "mmm", "mmm", "mmm"]


def test_editing_without_a_negative_branch():
    branches, guider = edited_conditions(Encoder(negative=False), "[a:b:2]", None, 4)
    assert letters(branches["positive"]) == "aa"
    assert list(guider.branches) == ["positive"]


# -- pictures


@pytest.fixture(scope="module")
def pipe(tiny_sd_folder):
    pipe = langevin.StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe, prompt, **options):
    options = {"num_inference_steps": 6, "seed": 3, "guidance_scale": 3.0, "output_type": "latent", **options}
    return pipe(prompt, **options).images


def switched(pipe, first, then, at, **options):
    """The same by hand: a callback puts another prompt in place."""

    def change(call, i, t, tensors):
        if i != at - 1:
            return {}
        embeds = pipe.encode_prompt(then, num_images_per_prompt=options.get("num_images_per_prompt", 1))[0]
        return {"prompt_embeds": embeds}

    return latents(pipe, first, callback_on_step_end=change, **options)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_an_edited_prompt_paints_as_one_that_is_switched_by_hand(pipe, scheduler):
    own = pipe.scheduler
    pipe.scheduler = getattr(langevin, scheduler).from_config(own.config)
    try:
        at = 3 if scheduler == "DDIMScheduler" else 6  # the network call at which half of the run is over
        edited = latents(pipe, "a [cat:dog:0.5]", num_images_per_prompt=2)
        by_hand = switched(pipe, "a cat", "a dog", at, num_images_per_prompt=2)
    finally:
        pipe.scheduler = own
    torch.testing.assert_close(edited, by_hand, atol=1e-5, rtol=1e-5)
    for prompt in ("a cat", "a dog"):
        assert (edited - latents(pipe, prompt, num_images_per_prompt=2)).abs().max() > 1e-3


def test_edits_that_change_nothing_are_the_plain_prompt_bit_for_bit(pipe):
    plain = latents(pipe, "a cat")
    for prompt in ("a [dog:cat:0]", "a [cat:dog:1.0]", "a [cat:dog:6]"):
        assert torch.equal(latents(pipe, prompt), plain)
    assert torch.equal(latents(pipe, ["a [dog:cat:0]", "b"]), latents(pipe, ["a cat", "b"]))


def test_each_prompt_of_a_batch_is_edited_for_itself(pipe):
    both = latents(pipe, ["a [cat|dog]", "a [b:c:2]"], seed=[3, 4])
    for k, prompt in enumerate(["a [cat|dog]", "a [b:c:2]"]):
        torch.testing.assert_close(both[k], latents(pipe, prompt, seed=3 + k)[0], atol=1e-4, rtol=1e-4)


def test_negative_prompts_long_prompts_and_no_guidance_can_be_edited_too(pipe):
    assert (latents(pipe, "a", negative_prompt="[b:c:3]") - latents(pipe, "a", negative_prompt="b")).abs().max() > 1e-4
    edited = latents(pipe, "a [b:cdefghijklmnopqrstuvwxyz:3]")  # two windows in the second half, so in the first too
    assert torch.isfinite(edited).all()
    assert (latents(pipe, "[a:b:3]", guidance_scale=1.0) - latents(pipe, "a", guidance_scale=1.0)).abs().max() > 1e-4


def test_sliding_weights_differ_from_standing_ones(pipe):
    slide = latents(pipe, "a (cat)1~2")
    for weight in (1, 1.5, 2):
        assert (slide - latents(pipe, f"a (cat){weight}")).abs().max() > 1e-5
    torch.testing.assert_close(latents(pipe, "a (cat)2~2"), latents(pipe, "a (cat)2.000"))


def test_embeddings_for_the_negative_prompt_do_not_go_with_editing(pipe):
    embeds = pipe.encode_prompt("b")[0]
    with pytest.raises(ValueError, match="as text"):
        latents(pipe, "[a:b:3]", negative_prompt_embeds=embeds)
    with pytest.raises(ValueError, match="3 negative prompts for 2"):
        latents(pipe, ["[a:b:3]", "c"], negative_prompt=["x", "y", "z"])


@pytest.mark.skipif(
    not (Path(langevin.__file__).parent / "zoo" / "weights" / "shapes" / "model_index.json").exists(),
    reason="no weights here",
)
def test_what_comes_early_is_painted_and_what_comes_late_is_not():
    from langevin.zoo.reader import read

    pipe = langevin.DiffusionPipeline.from_pretrained("langevin/shapes")
    pipe.set_progress_bar_config(disable=True)

    def pictures_of_two(prompt):
        images = pipe(prompt, num_images_per_prompt=6, num_inference_steps=10, seed=0).images
        return sum(len(read(image).things) == 2 for image in images)

    assert pictures_of_two("a red circle [and a blue square:0.1]") >= 5
    assert pictures_of_two("a red circle [and a blue square:0.8]") <= 1
