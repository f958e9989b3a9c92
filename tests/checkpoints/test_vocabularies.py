"""Tokenizers and image processors that would fill the memory, or never end, are refused before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from langevin.checkpoints import transformers_parts, vocabularies
from langevin.checkpoints.folders import BOX
from tests.checkpoints.nets import refused_at_once
from tests.helpers import tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A tokenizer that is read as its ``tokenizer.json`` says, whatever class transformers has for it."""
    tiny_tokenizer(tmp_path / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).unlink()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16, "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path / "tokenizer"


def load(folder: Path, cls=transformers.PreTrainedTokenizerFast):
    return transformers_parts.load(cls, folder.parent, folder.name)


def change(file: Path, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def several(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BOTH = [TEXT, {"Sequence": {"id": "B", "type_id": 0}}]
TEMPLATE = {"type": "TemplateProcessing", "single": [TEXT] * 30, "pair": BOTH, "special_tokens": {}}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", several(*[replace({"String": "a"}, "aaaa")] * 14), "letters for one letter"),
        ("normalizer", several(*[replace({"String": ""}, "ab")] * 14), "letters for one letter"),
        ("normalizer", several(*[several(replace({"Regex": "."}, "ab"))] * 14), "letters for one letter"),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 10**6}, "letters for one letter"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA" * 10 + "eHh4" * 1000}, "letters"),
        ("normalizer", several(*[{"type": "NFKD"}] * 10**4), "steps"),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 10**4}, "steps"),
        ("post_processor", TEMPLATE, "copies"),
        ("added_tokens", [{"id": k, "content": f"<{k}>", **ADDED} for k in range(10**5)], "added tokens"),
    ],
    ids=["replace", "nothing", "nested", "prepend", "charsmap", "normalizers", "cutters", "template", "added"],
)  # fmt: skip
def test_programs_that_make_much_of_little(folder, part, value, words):
    change(folder / "tokenizer.json", **{part: value})
    with refused_at_once("tokenizer", words, "are the most"):
        load(folder)


@pytest.mark.parametrize("name", ["extra_ids", "offset"])
def test_tokens_that_a_class_makes_up(folder, name):
    change(folder / "tokenizer_config.json", **{name: 10**9})
    with refused_at_once("extra tokens"):
        load(folder, transformers.T5TokenizerFast)
    change(folder / "tokenizer_config.json", **{name: 0, "added_tokens_decoder": {str(k): {} for k in range(10**5)}})
    with refused_at_once("added tokens"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "preprocessor_config.json"]
)
def test_files_that_are_too_large(folder, name):
    with (folder / name).open("wb") as file:
        file.truncate(vocabularies.LARGEST[Path(name).suffix] + 1)  # a hole, which takes no room
    with refused_at_once(name, "are the most"):
        load(folder)


def test_files_with_too_many_entries(folder):
    (folder / "tokenizer.json").write_text('{"a": [' + "[]," * 3_000_000 + "[]]}")
    with refused_at_once("tokenizer.json", "entries"):
        load(folder)


@pytest.mark.parametrize("size", [{"size": 10**9}, {"size": {"shortest_edge": 1e30}}, {"crop_size": {"height": 10**5}}])
def test_image_processors_for_huge_pictures(tmp_path, size):
    processor = transformers.CLIPImageProcessor()
    processor.save_pretrained(tmp_path / "p")
    assert transformers_parts.load(type(processor), tmp_path, "p") is not None
    change(tmp_path / "p/preprocessor_config.json", **size)
    with refused_at_once("preprocessor_config.json", "4,096"):
        transformers_parts.load(type(processor), tmp_path, "p")


def test_those_in_use_pass(folder):
    bert = several(
        {"type": "Precompiled", "precompiled_charsmap": None},
        replace({"Regex": " {2,}"}, " "),
        replace({"String": " "}, "▁"),
        {"type": "Prepend", "prepend": "▁"},
    )
    change(folder / "tokenizer.json", normalizer=bert)
    vocabularies.check_tokenizer(folder, "x")
    for one in BOX.glob("*/tokenizer"):
        vocabularies.check_sizes(one, "x")
        vocabularies.check_tokenizer(one, "x")
