"""Any text is a prompt: no crash, no hang, time that grows with the length and not with its square."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from langevin.prompts.compel import parse_compel
from langevin.prompts.tree import And, Fragment, PromptSyntaxError, Text
from tests.helpers import reference_parts
from tests.prompts.encoding import encode_prompts

ATOMS = ["a", " ", "b c", "(", ")", '"', "+", "-", "--", ",", ".", "1.3", "0.5", "\\", "\\(", '\\"', "=", "[a:b:0.3]"]
ATOMS += [
    '("a", "b")',
    ".blend(",
    ".and(",
    ".attend(",
    "no_normalize",
    "🎉",
    "é",
    "\n",
    "\x0b",
    "\u00a0",
    "日本",
    ":1.2",
]
SYNTAX = st.lists(st.sampled_from(ATOMS), max_size=14).map("".join)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def parsed(prompt):
    """The tree, or None for an error that points into the prompt."""
    try:
        return parse_compel(prompt)
    except PromptSyntaxError as error:
        position = error.position
    assert 0 <= position <= len(prompt)
    return None


def texts(tree):
    for part in tree.parts:
        yield from [part] if isinstance(part, Text) else texts(part)


@quick
@given(SYNTAX | st.text(max_size=60))
def test_any_text_is_read(prompt):
    tree = parsed(prompt)
    if tree is None:
        return
    assert len(tree.parts) == len(tree.weights) > 0
    for text in texts(tree):
        for fragment in text.fragments:
            assert 0 <= fragment.weight <= 1e6
            assert 0 <= fragment.start <= len(prompt)


@quick
@given(
    st.text(alphabet=st.characters(exclude_characters='()"+-\\.\x0b'), max_size=60).filter(lambda t: "Lora" not in t)
)
def test_text_without_the_grammars_characters_is_itself(prompt):
    assert parse_compel(prompt) == And((Text((Fragment(prompt),)),), (1.0,))


@quick
@given(st.lists(st.sampled_from(["red", "cat", "on", "mats"]), min_size=1, max_size=6), st.integers(0, 300))
def test_brackets_around_words_weigh_them_all(words, hundredths):
    (text,) = parse_compel(f"({' '.join(words)}){hundredths / 100} end").parts
    ends = [] if hundredths == 100 else [Fragment("end", 1.0, text.fragments[-1].start)]
    inside = " ".join(words) if ends else " ".join([*words, "end"])
    assert text.fragments == (Fragment(inside, hundredths / 100, 1), *ends)


def seconds(prompt):
    begin = time.process_time()
    parsed(prompt)
    return time.process_time() - begin


UNITS = SYNTAX.filter(bool)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["", "(", '"', '("a", ']), UNITS, st.sampled_from(["", ")", '").and()']))
@example("", "\\", "")
@example("", "(", ")")
@example("", "((a)+ b ", "")
@example("", '(a" b" (c" d" ', "")
@example("", "a .attend( ", "")
@example('("a", ', '"a (b" ', "")
def test_reading_time_is_linear(before, unit, after):
    def prompt(length):
        return before + unit * (length // len(unit)) + after

    for _ in range(3):  # a busy machine may disturb one measurement
        long = seconds(prompt(20_000))
        if long < 0.02 or long < 9 * seconds(prompt(4_000)):  # 5 if linear, 25 if quadratic
            return
    pytest.fail(f"{long:.2f} s for 20,000 characters: much more than 5 times those of 4,000")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return reference_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("long_prompts", ["chunk", "cut"])
@settings(max_examples=60, deadline=None)
@given(prompt=SYNTAX, negative=SYNTAX)
@example(prompt="a- b+ " * 20, negative="")
@example(prompt="x" * 10_000, negative="(y)0.5")
def test_any_two_texts_are_encoded_to_one_shape(parts, long_prompts, prompt, negative):
    with torch.no_grad():
        try:
            got = encode_prompts(parts["tokenizer"], parts["text_encoder"], prompt, negative, long_prompts=long_prompts)
        except PromptSyntaxError:
            return
    assert got.positive.shape == got.negative.shape
    assert got.positive.shape[1] % 16 == 0
    assert torch.isfinite(got.positive).all()
    assert torch.isfinite(got.negative).all()
