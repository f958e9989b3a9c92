"""Prompts nobody thought of: each is read, or refused with a ValueError that can be printed and handed on.

``LANGEVIN_FUZZ=100`` tries a hundred times as many.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from langevin.prompts.editing import prompt_schedule
from langevin.prompts.lengths import LENGTHS
from langevin.prompts.readers.bert import BertReader
from langevin.prompts.readers.clip import CLIPReader
from langevin.prompts.readers.pooled import PooledReader
from langevin.prompts.readers.t5 import T5Reader
from langevin.prompts.readers.xlm_r import XLMRReader
from langevin.prompts.tree import PromptSyntaxError
from langevin.prompts.weighting import GRAMMARS
from tests.helpers import tiny_tokenizer
from tests.prompts import readers_parts as tiny

TIMES = float(os.environ.get("LANGEVIN_FUZZ", "1"))
ATOMS = ["a", "cat ", " ", "   ", "\n", "(", ")", "[", "]", "{", '"', "'", "+", "++", "-", ",", ".", ":", "|", "~", "="]
ATOMS += ["\\", "\\(", "\\[", '\\"', "1.3", "0", "0.5", ".5", "-1", "1e9", "9" * 309, "0." + "9" * 320, "inf", "nan"]
ATOMS += ["BREAK", " AND ", ".blend(", ".and(", ".attend(", ".swap(", "withLora(a)", "no_normalize", '("a", "b")']
ATOMS += ["(a:1.2)", "[a:b:2]", "[a:b:0.5]", "[a|b]", "(a)1~2", "(a:1~2)", "é", "猫", "🎉", "\ud83d", "\x00", "\u00a0"]
ATOMS += ["</w>", "<|endoftext|>", "</s>", "[SEP]", "##a", "▁"]
PROMPTS = st.lists(st.sampled_from(ATOMS), max_size=12).map("".join) | st.text(max_size=30)
OPTIONS = st.fixed_dictionaries(
    {
        "prompt_weighting": st.sampled_from(list(GRAMMARS)),
        "long_prompts": st.sampled_from(["chunk", "cut"]),
        "steps": st.integers(1, 9),
        "pictures": st.integers(1, 2),
        "clip_skip": st.sampled_from([None, 1]),
        "with_negative": st.booleans(),
    }
)


def tries(count):
    return settings(
        max_examples=max(int(count * TIMES), 1),
        derandomize=TIMES == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), window=16)
    outputs = {"hidden": "tokens", "embeds": "text_embeds", "mask": "filled"}
    return {
        "clip": CLIPReader(tokenizer, tiny.clip_encoder(tokenizer)),
        "pooled": PooledReader(tokenizer, tiny.clip_encoder(tokenizer, projection=10), outputs=outputs),
        "t5": T5Reader(tiny.t5_tokenizer(), tiny.t5_encoder(), window=12),
        "xlm_r": XLMRReader(tiny.xlm_r_tokenizer(12), tiny.xlm_r()),
        "bert": BertReader(tiny.bert_tokenizer(), tiny.bert(), window=12),
    }


def tried(make):
    """What is made, or None where a prompt is refused as it should be."""
    try:
        return make()
    except ValueError as error:
        refusal = error
    message = str(refusal)
    assert message.encode()
    assert str(pickle.loads(pickle.dumps(refusal))) == message
    assert 0 <= getattr(refusal, "position", 0) <= len(getattr(refusal, "prompt", ""))
    assert isinstance(refusal, PromptSyntaxError) or "\n" not in message
    return None


@pytest.mark.parametrize("kind", ["clip", "pooled", "t5", "xlm_r", "bert"])
@tries(60)
@given(st.lists(PROMPTS, min_size=1, max_size=3), PROMPTS, OPTIONS)
@example(["[a:b:" + "9" * 309 + "]"], "[a:b:-" + "9" * 309 + ".5]", {"steps": 4})
@example(["((a)" + "9" * 309 + ")0", "(a:1~" + "9" * 400 + ")"], "(a)1~" + "9" * 400, {"steps": 4})
@example(["((a:" + "9" * 309 + "):0)"], "[(a:" + "9" * 309 + ")]", {"prompt_weighting": "a1111"})
@example(['("a", "b").blend(' + "9" * 308 + ", " + "9" * 308 + ")"], "", {})
@example(['("a", "b").blend(' + "9" * 300 + ", 1, no_normalize)"], "", {})
@example(["(a\ud83d"], '("a").blend(1, \ud83d)', {})
@example(["a AND \ud83d"], "", {"prompt_weighting": "a1111"})
def test_any_prompts_are_read_or_refused(readers, kind, prompts, negative, options):
    def read(texts):
        with torch.no_grad():
            return readers[kind].read(texts, negative, **options)

    together = tried(lambda: read(prompts))
    alone = [tried(lambda text=text: read(text)) for text in prompts]
    assert (together is None) == any(each is None for each in alone)
    if together is None:
        return
    rows = options.get("pictures", 1)
    for branch, told in together.branches.items():
        lengths = told.get(LENGTHS, {})
        for name, value in told.items():
            if name == LENGTHS:
                continue
            assert torch.isfinite(value).all()
            for k, each in enumerate(alone):
                expected, own = each.branches[branch][name], value[rows * k : rows * (k + 1)]
                if name in lengths:
                    assert lengths[name][rows * k] == expected.shape[1]
                    own = own[:, : expected.shape[1]]
                torch.testing.assert_close(own, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("grammar", list(GRAMMARS))
@tries(200)
@given(PROMPTS, st.integers(1, 40))
def test_a_schedule_says_what_holds_at_each_step(grammar, prompt, steps):
    schedule = prompt_schedule(prompt, steps, grammar)
    firsts = [first for first, _ in schedule]
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    assert firsts[-1] < steps
    assert all(a[1] != b[1] for a, b in itertools.pairwise(schedule))
    for _, text in schedule:
        tree = tried(lambda text=text: GRAMMARS[grammar].parse(text))
        assert tree is None or all(abs(weight) <= 1e6 for weight in tree.weights)


def seconds(read, text):
    begin = time.process_time()
    tried(lambda: read(text))
    return time.process_time() - begin


@pytest.mark.parametrize("grammar", list(GRAMMARS))
@tries(25)
@given(st.sampled_from(["", "(", "(a:", "[", '"', ":"]), st.lists(st.sampled_from(ATOMS), min_size=1, max_size=3))
@example("", [" "])
@example("(a:1", [" "])
@example("", ["BREAK", "   "])
@example("[", ["[a:", "|"])
def test_reading_takes_time_as_long_as_the_prompt(grammar, before, units):
    unit = "".join(units)

    def prompt(length):
        return before + unit * (length // len(unit))

    for read in (GRAMMARS[grammar].parse, lambda text: prompt_schedule(text, 3, grammar)):
        for _ in range(3):  # a busy machine may disturb one measurement
            long = seconds(read, prompt(20_000))
            if long < 0.05 or long < 9 * seconds(read, prompt(4_000)):  # 5 if linear, 25 if quadratic
                break
        else:
            pytest.fail(f"{long:.2f} s for 20,000 characters: much more than 5 times those of 4,000")
