"""The web UIs' prompt grammars: weights as their programs read them, and any text read in linear time."""

from __future__ import annotations

import gc
import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin.prompts.tree import And, PromptSyntaxError, Text
from langevin.prompts.webui import DIALECTS, parse_webui
from tests.helpers import tiny_tokenizer
from tests.prompts.encoding import encode_prompts


def text_of(prompt: str, dialect: str = "a1111") -> Text:
    tree = parse_webui(prompt, dialect)
    assert isinstance(tree, And)
    assert tree.weights == (1.0,)
    (text,) = tree.parts
    assert isinstance(text, Text)
    return text


def read(prompt: str, dialect: str = "a1111") -> list[tuple[str, float]]:
    return [(f.text, round(f.weight, 6)) for f in text_of(prompt, dialect).fragments]


UP, DOWN = 1.1, round(1 / 1.1, 6)

A1111 = {
    "normal text": [("normal text", 1)],
    "": [("", 1)],
    "an (important) word": [("an ", 1), ("important", UP), (" word", 1)],
    "((a)) [b] [[c]]": [("a", 1.21), (" ", 1), ("b", DOWN), (" ", 1), ("c", round(1 / 1.21, 6))],
    "(a:1.3)(b:.5) (c: 2 )(d:-1)": [("a", 1.3), ("b", 0.5), (" ", 1), ("c", 2), ("d", -1)],
    "((a:1.2) b:1.5)": [("a", 1.8), (" b", 1.5)],
    "(unnecessary)(parens)": [("unnecessaryparens", UP)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1), ("house", 1.573), (" ", UP), ("on", 1), (" a ", UP), ("hill", 0.55), (", sun, ", UP),
        ("sky", 1.4641), (".", UP),
    ],
    # brackets that do not balance
    "(unbalanced": [("unbalanced", UP)],
    "[a": [("a", DOWN)],
    "a) b] c:1.3)": [("a) b] c:1.3)", 1)],
    "(a [b) c]": [("a ", UP), ("b", 1), (" c", DOWN)],
    ")(": [(")", 1)],
    # escapes
    r"\(literal\] \[\)": [("(literal] [)", 1)],
    r"a \\(b\) c": [("a \\", 1), ("b) c", UP)],
    r"a\b\ ": [("ab ", 1)],
    # what looks like a weight and is none
    "(a:b)": [("a:b", UP)],
    "(a:1.2.3)": [("a:1.2.3", UP)],
    "(a:1.2 b)": [("a:1.2 b", UP)],
    "a:1.2": [("a:1.2", 1)],
    "[a:1.2)": [("a:1.2)", DOWN)],
    "and brand AN D": [("and brand AN D", 1)],
}  # fmt: skip

COMFYUI = {
    "normal text": [("normal text", 1)],
    "": [("", 1)],
    "an (important) word": [("an ", 1), ("important", UP), (" word", 1)],
    "((a))": [("a", 1.21)],
    "(a:1.3)(b:1e-1)": [("a", 1.3), ("b", 0.1)],
    "((a:1.2) b:1.5)": [("a", 1.2), (" b", 1.5)],
    "((a):1.2)": [("a", 1.32)],
    "(a (b:1.2))": [("a ", UP), ("b", 1.2)],
    "(a:b)": [("a:b", UP)],
    "(:1.2)": [(":1.2", UP)],
    "()": [("", 1)],
    "[a] BREAK b AND c": [("[a] BREAK b AND c", 1)],
    r"\(a\) \x": [(r"(a) \x", 1)],
    "(x) a ( b (c)": [("x", UP), (" a ( b (c)", 1)],
    "a) (b) (c)": [("a) (b) (c)", 1)],
    "a) ((b) c": [("a) (", 1), ("b", UP), (" c", 1)],
}


@pytest.mark.parametrize("prompt", A1111)
def test_weights_as_automatic1111_reads_them(prompt):
    assert read(prompt) == A1111[prompt]


@pytest.mark.parametrize("prompt", COMFYUI)
def test_weights_as_comfyui_reads_them(prompt):
    assert read(prompt, "comfyui") == COMFYUI[prompt]


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("a BREAK b", ["a", "b"]),
        ("a\nBREAK, b", ["a", ", b"]),
        ("BREAK a", ["", "a"]),
        ("a BREAK BREAK b", ["a", "", "b"]),
        ("a BREAK", ["a"]),
        ("BREAK", [""]),
        ("(a BREAK b:1.2) c", ["a", "b|1.2 c"]),
        ("BREAKFAST break aBREAK", ["BREAKFAST break aBREAK"]),
    ],
)
def test_break_begins_a_chunk(prompt, chunks):
    text = text_of(prompt)
    edges = [0, *text.breaks, len(text.fragments)]
    found = ["".join(f.text for f in text.fragments[a:b]) for a, b in itertools.pairwise(edges)]
    assert found == [chunk.replace("|1.2", "") for chunk in chunks]
    if "1.2" in prompt:
        assert [f.weight for f in text.fragments] == [1.2, 1.2, 1.0]


def test_and_is_refused_with_a_caret_under_it():
    with pytest.raises(PromptSyntaxError, match="AND") as caught:
        parse_webui("a cat AND a dog :0.5")
    *_, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("AND a dog")


def test_an_unknown_dialect_is_refused():
    with pytest.raises(ValueError, match="a1111, comfyui"):
        parse_webui("a", "invoke")


ODD = st.text(alphabet=st.sampled_from('()[]:\\ab1. |~+-"\n é😀'), max_size=60)
ODD = st.lists(ODD | st.sampled_from(["BREAK", ":1.3)", "((", " BREAK "]), max_size=6).map("".join)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=150, deadline=None)
@given(prompt=ODD)
def test_any_text_is_read(dialect, prompt):
    text = text_of(prompt, dialect)
    assert all(math.isfinite(f.weight) for f in text.fragments)
    assert text.fragments
    assert list(text.breaks) == sorted(text.breaks)
    assert all(0 < b < len(text.fragments) for b in text.breaks)
    # every character that is no grammar comes through, in order
    said = "".join(f.text for f in text.fragments)
    assert [c for c in said if c in "abé😀"] == [c for c in prompt if c in "abé😀"]
    for one, other in itertools.pairwise(text.fragments):
        assert one.start <= other.start
    for fragment in text.fragments:
        if fragment.text and "\\" not in prompt:
            assert prompt[fragment.start] == fragment.text[0]


@settings(max_examples=100, deadline=None)
@given(prompt=st.text(alphabet=st.characters(exclude_characters="()[]:\\"), max_size=50))
def test_text_without_brackets_is_itself(prompt):
    if "BREAK" in prompt or "AND" in prompt:
        return
    for dialect in DIALECTS:
        assert read(prompt, dialect) == [(prompt, 1)]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("unit", ["(", "[", ")", "(a:1.1)", "\\", ":", "([", "1", ":1", ": ", " BREAK", "(a", "a)"])
def test_time_is_linear_and_depth_no_matter(dialect, unit):
    def seconds(count):
        gc.disable()
        try:
            begin = time.process_time()
            parse_webui(unit * count, dialect)
            return time.process_time() - begin
        finally:
            gc.enable()

    short, long = (min(seconds(count) for _ in range(3)) for count in (3_000, 15_000))
    assert long < 12 * max(short, 1e-3)  # squared, it would be 25 times


def test_thousands_of_brackets_stay_finite():
    for prompt in (
        "(" * 10_000 + "a",
        "[" * 10_000 + "a",
        "([" * 10_000 + "a",
        "(a:1e300)" + "(" * 9 + "b:9999999999)",
    ):
        for dialect in DIALECTS:
            assert all(math.isfinite(f.weight) for f in text_of(prompt, dialect).fragments)


# -- arithmetic, by the published formulas


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny CLIP with random weights, 14 letters to a chunk."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp("clip") / "tokenizer")
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    marks = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes, **marks)
    return tokenizer, CLIPTextModel(config).eval()


def embedding(encoder, prompt: str, weighting: str) -> torch.Tensor:
    with torch.no_grad():
        return encode_prompts(*encoder, prompt, with_negative=False, prompt_weighting=weighting).positive[0]


def plain(encoder, prompt: str) -> torch.Tensor:
    """The encoder's own output for a prompt that fits its window."""
    tokenizer, model = encoder
    with torch.no_grad():
        return model(tokenizer(prompt, padding="max_length", max_length=16, return_tensors="pt").input_ids)[0][0]


def heavy(*weights: float) -> torch.Tensor:
    """``(16, 1)``: weights behind the mark of the beginning, 1 elsewhere."""
    all_weights = torch.ones(16, 1)
    all_weights[1 : 1 + len(weights), 0] = torch.tensor(weights)
    return all_weights


@pytest.mark.parametrize(
    ("prompt", "words", "weights"),
    [
        ("a (b:1.5) [c]", "a b c", (1, 1.5, 1 / 1.1)),
        ("(a b:0.3) c", "a b c", (0.3, 0.3, 1)),
        ("(a:0) (b:-1)", "a b", (0, -1)),
        ("((a)) (b", "a b", (1.21, 1.1)),
    ],
)
def test_a1111_multiplies_and_restores_the_mean(encoder, prompt, words, weights):
    z = plain(encoder, words)
    weighted = z * heavy(*weights)
    expected = weighted * (z.mean() / weighted.mean())
    torch.testing.assert_close(embedding(encoder, prompt, "a1111"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "words", "weights"),
    [
        ("a (b:1.5) c", "a b c", (1, 1.5, 1)),
        ("(a (b:0.3)) c", "a b c", (1.1, 0.3, 1)),
        ("(a:0) (b:-1)", "a b", (0, -1)),
    ],
)
def test_comfyui_goes_from_the_empty_prompt(encoder, prompt, words, weights):
    z, empty = plain(encoder, words), plain(encoder, "")
    expected = empty + heavy(*weights) * (z - empty)
    torch.testing.assert_close(embedding(encoder, prompt, "comfyui"), expected, atol=1e-5, rtol=1e-5)


def test_without_weights_the_encoder_has_the_last_word(encoder):
    for weighting in DIALECTS:
        assert torch.equal(embedding(encoder, "a b", weighting), plain(encoder, "a b"))


def test_break_gives_each_chunk_a_window_and_a_mean_of_its_own(encoder):
    both = embedding(encoder, "a (b:1.5) BREAK c", "a1111")
    assert both.shape == (32, 24)
    torch.testing.assert_close(both[:16], embedding(encoder, "a (b:1.5)", "a1111"), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both[16:], plain(encoder, "c"), atol=1e-5, rtol=1e-5)
