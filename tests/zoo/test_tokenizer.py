"""The tokenizer of langevin/shapes takes any text and knows the world's words."""

import pytest

from langevin.zoo import tokenizer as recipe
from langevin.zoo import world

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    recipe.make_tokenizer(folder)
    assert {"vocab.json", "merges.txt"} <= {file.name for file in folder.iterdir()}
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_every_word_of_the_world_is_one_token(tokenizer):
    names = [*world.SHAPES, *world.COLOURS, *world.BACKGROUNDS, *world.SIZES, *world.POSITIONS.values()]
    for word in [*" ".join(names).split(), "a", "an", "picture", "drawing", "above", "below", "background"]:
        start, *inside, end = tokenizer(word).input_ids
        assert len(inside) == 1, word
        assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a red circle",
        "ein roter Kreis",
        "日本の星 😀🎨",
        "\x00\x07 control",
        "don't 1234!?",
        "word " * 500,
        "x" * 5000,
    ],
)
def test_any_text_encodes_to_the_window(tokenizer, text):
    tokens = tokenizer(text, padding="max_length", truncation=True).input_ids
    assert len(tokens) == recipe.WINDOW == tokenizer.model_max_length
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens[-1] == tokenizer.eos_token_id
    assert all(0 <= token < len(tokenizer) for token in tokens)


def test_empty_text_is_start_and_end(tokenizer):
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


@pytest.mark.parametrize("text", ["a small green star", "日本の星 😀", "naïve café"])
def test_nothing_is_lost(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_case_and_spaces_do_not_matter(tokenizer):
    assert tokenizer("A  Red CIRCLE ").input_ids == tokenizer("a red circle").input_ids


def test_it_is_made_the_same_each_time(tmp_path):
    for name in "ab":
        recipe.make_tokenizer(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
