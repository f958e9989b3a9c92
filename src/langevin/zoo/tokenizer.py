"""Makes the tokenizer of ``langevin/shapes``: byte pairs as CLIP has them, learnt from the world's captions.

Every byte is a token, so any text can be encoded; every word of the world is one token.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

from langevin.zoo.world import BACKGROUNDS, COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, caption, random_scene

WINDOW = 32
"""Tokens in a prompt, the first and last marks included."""
MERGES = 420
CAPTIONS = 4000
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

_ENGLISH = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she
many some so these would other into has more her two like him see time could no make than first been its
who now people my made over did down only way find use may water long little very after words called
just where most know get through back much before go good new write our used me man too any day same
right look think also around another came come work three word must because does part even place well
such here take why things help put years different away again off went old number great tell men say
small every found still between name should home big give air line set own under read last never us left
end along while might next sound below saw something thought both few those always looked show large
often together asked house world going want school important until form food keep children feet land
side without boy once animals life enough took sometimes four head above kind began almost live page got
earth need far hand high year mother light parts country father let night following picture being study
second eyes soon times story since white days ever paper hard near sentence better best across during
today others however sure means knew try told young miles sun ways thing whole hear example heard
several change answer room sea against top turned learn point city play toward five using himself
usually photo image painting drawing sketch art style portrait landscape bright dark color colour shape
object cat dog bird tree flower car sky mountain river face woman girl person king queen horse fish moon
snow fire forest beautiful detailed quality realistic digital watercolor oil canvas blurry ugly bad best
masterpiece
"""


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte: itself where it prints, else the next free one from U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


def word_counts(seed: int = 0) -> Counter[str]:
    """How often each word occurs in the world's captions, and ordinary English words once each."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter(_ENGLISH.split())
    for _ in range(CAPTIONS):
        counts.update(re.findall(r"[a-z]+", caption(random_scene(rng), rng)))
    names = [
        *SHAPES,
        *COLOURS,
        *BACKGROUNDS,
        *SIZES,
        *POSITIONS.values(),
        *(s for r in RELATIONS.values() for s in r),
    ]
    counts.update({word: 1000 for name in names for word in name.split()})
    return counts


def learn_merges(counts: Counter[str], merges: int = MERGES) -> list[tuple[str, str]]:
    """Join the commonest neighbours again and again; ties go to the pair first in the alphabet."""
    words = {word: (*word[:-1], word[-1] + WORD_END) for word in counts}
    learnt: list[tuple[str, str]] = []
    while len(learnt) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        words = {word: _join(parts, best) for word, parts in words.items()}
    return learnt


def _join(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)


def make_tokenizer(out: Path) -> None:
    """Write ``vocab.json``, ``merges.txt`` and the two configs of a CLIP tokenizer into ``out``."""
    letters = [letter for _, letter in sorted(byte_letters().items())]
    merges = learn_merges(word_counts())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), START, END]
    out.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": WINDOW, "do_lower_case": True} | marks
    _write(out / "vocab.json", json.dumps({token: n for n, token in enumerate(tokens)}, ensure_ascii=False))
    _write(out / "merges.txt", "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n")
    _write(out / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    _write(out / "special_tokens_map.json", json.dumps(marks, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
