"""Train ``langevin/shapes-clip``: a CLIP of the shapes world, which says how well a text fits a picture.

Radford et al., 2021 (https://arxiv.org/abs/2103.00020): pictures and captions of a batch find one another. Every batch
holds scenes with their neighbours, which differ in one attribute (``neighbours.py``), and a caption that happens to be
true of another's picture is neither right nor wrong there. The image tower learns to see first, as that of words has
learnt to read for ``langevin/shapes``: each of its patches says which thing it lies on, and the whole what there is.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from langevin.zoo.calibration import TERSE, calibration
from langevin.zoo.loop import draw, fit
from langevin.zoo.neighbours import differing, terse, truth
from langevin.zoo.tokenizer import make_tokenizer
from langevin.zoo.train_autoencoder import pictures
from langevin.zoo.train_text_to_image import ATTENTION, TEXT, tokenize
from langevin.zoo.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    random_scene,
    training_caption,
)

VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "projection_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 16,
}
PROJECTION = 128
STEPS, RATE = 4000, 1e-3
SEEING_STEPS, SEEING_BATCH = 8000, 64
SEEING_POOL, SEEING_PASSES = 4096, 8
SEEING = 0.6
"""Share of the time for learning to see, where the time is limited."""
GROUPS = 12
"""Scenes in a batch; each comes with its neighbours."""
NEIGHBOURS = ("shape", "size", "place", "place")
"""What the neighbours differ in. Colours are learnt from the other scenes; where things are is the hardest."""
POOL, PASSES = 512, 4
"""Groups rendered at a time, and how often each is used (captions are new each time)."""
SIGHT = 0.5
"""Weight of what is learnt about seeing beside the loss of texts and pictures."""
BEGIN, MOST = 2.0, 4.0
"""The logarithm of the scale of the cosines: at first, and at most."""
MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_SIDE = VISION["image_size"] // VISION["patch_size"]


def train(
    model: Path, out: Path, steps: int = STEPS, batch: int = GROUPS, seed: int = 0, minutes: float | None = None
) -> None:
    """Train both towers, the text tower from that of the pipeline in the folder ``model``, and save them in ``out``."""
    torch.manual_seed(seed)
    clip, tokenizer = begun(model)
    eyes = seeing(clip, out / "seeing", seed, minutes and SEEING * minutes)
    network = nn.ModuleDict({"clip": clip, "heads": eyes["heads"]}).requires_grad_(True).train()
    clip.vision_model.load_state_dict(eyes["vision"].state_dict())
    minutes = minutes and (1 - SEEING) * minutes

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[list[Scene]], Tensor]:
        rng = random.Random(f"{seed}/clip/{number}")
        groups = [group(rng) for _ in range(POOL)]
        images = pictures([scene for members in groups for scene in members])
        return groups, images.bfloat16().unflatten(0, (POOL, -1))

    def loss(step: int) -> Tensor:
        rng = random.Random(f"{seed}/clip/{step}/captions")
        number, chosen = draw(step, batch, POOL, PASSES)
        groups, images = pool(number)
        scenes = [scene for n in chosen.tolist() for scene in groups[n]]
        texts = [training_caption(scene, rng) for scene in scenes]
        texts = [terse(text) if rng.random() < TERSE else text for text in texts]
        tokens = shortest(tokenize(tokenizer, texts), clip.config.text_config.eos_token_id)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            told = clip(input_ids=tokens, pixel_values=images[chosen].flatten(0, 1).float())
            seen = sight(network["heads"], told.vision_model_output, scenes)
        clip.logit_scale.data.clamp_(max=MOST)
        found = contrast(told.logits_per_text.float(), torch.from_numpy(truth(texts, scenes)))
        return found + SIGHT * seen

    def keep(average: Any, step: int) -> None:
        save(out, average["clip"])

    average = fit(network, loss, steps=steps, rate=RATE, out=out, minutes=minutes, look=keep)
    save(out, average["clip"], calibration(out))


def begun(model: Path) -> tuple[Any, Any]:
    """A ``CLIPModel`` whose text tower is the text encoder of a pipeline, and the pipeline's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    text = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
    marks = {name: getattr(text.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    words = {**TEXT, "vocab_size": len(tokenizer), **marks}
    clip = CLIPModel(
        CLIPConfig(text_config=words, vision_config=VISION, projection_dim=PROJECTION, logit_scale_init_value=BEGIN)
    )
    own = clip.text_model.state_dict()
    clip.text_model.load_state_dict(dict(zip(own, text.state_dict().values(), strict=True)))
    return clip, tokenizer


def group(rng: random.Random) -> list[Scene]:
    """A scene and its neighbours."""
    scene = random_scene(rng)
    return [scene, *(differing(scene, attribute, rng) for attribute in NEIGHBOURS)]


def shortest(tokens: Tensor, end: int) -> Tensor:
    """Token numbers without the columns after every text's end."""
    return tokens[:, : int((tokens != end).sum(1).max()) + 1]


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """Each text is to find its own picture, and each picture its text, among those that are false of one another."""
    own = torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(true & ~own, float("-inf"))
    right = torch.arange(len(logits))
    return (nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits.t(), right)) / 2


# ------------------------------------------------------------------------------------------------ seeing

_CHOICES = (1 + len(COLOURS), 1 + len(SHAPES), 1 + len(SIZES))
_WORDS = (*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, "two")


def seeing(clip: Any, out: Path, seed: int, minutes: float | None) -> Any:
    """The image tower of ``clip`` after it has learnt what is where, and the heads with which it says so."""
    heads = nn.ModuleDict(
        {
            "patches": nn.Linear(VISION["hidden_size"], sum(_CHOICES)),
            "whole": nn.Linear(VISION["hidden_size"], len(_WORDS)),
        }
    )
    model = nn.ModuleDict({"vision": copy.deepcopy(clip.vision_model), "heads": heads}).train()

    @lru_cache(maxsize=1)
    def pool(number: int) -> tuple[list[Scene], Tensor]:
        rng = random.Random(f"{seed}/seeing/{number}")
        scenes = [random_scene(rng) for _ in range(SEEING_POOL)]
        return scenes, pictures(scenes).bfloat16()

    def loss(step: int) -> Tensor:
        number, chosen = draw(step, SEEING_BATCH, SEEING_POOL, SEEING_PASSES)
        scenes, images = pool(number)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(ATTENTION):
            return sight(heads, model["vision"](pixel_values=images[chosen].float()), [scenes[i] for i in chosen])

    return fit(model, loss, steps=SEEING_STEPS, rate=RATE, out=out, minutes=minutes)


def sight(heads: Any, seen: Any, scenes: Sequence[Scene]) -> Tensor:
    """How wrong the image tower is: each patch about the thing it lies on, and all of them about what there is."""
    guesses = heads["patches"](seen.last_hidden_state[:, 1:]).float().split(_CHOICES, dim=-1)
    pairs = list(zip(guesses, patches(scenes).unbind(-1), strict=True))
    apart = torch.stack([nn.functional.cross_entropy(p.flatten(0, 1), m.flatten()) for p, m in pairs]).mean()
    whole = nn.functional.binary_cross_entropy_with_logits(heads["whole"](seen.pooler_output).float(), words(scenes))
    return apart + whole


def patches(scenes: Sequence[Scene]) -> Tensor:
    """Colour, shape and size of the thing whose box covers most of each patch, 0 where none does: (n, patches, 3)."""
    width = VISION["patch_size"]
    edges = np.arange(_SIDE) * width
    marks = np.zeros((len(scenes), _SIDE, _SIDE, 3), np.int64)
    for mark, scene in zip(marks, scenes, strict=True):
        most = np.full((_SIDE, _SIDE), LEAST * width**2)
        for thing in scene.things:
            rows, columns = (
                np.clip(np.minimum(at + thing.radius, edges + width) - np.maximum(at - thing.radius, edges), 0, None)
                for at in (thing.y, thing.x)
            )
            covered = rows[:, None] * columns
            mark[covered > most] = [tuple(names).index(name) + 1 for names, name in _names(thing)]
            most = np.maximum(most, covered)
    return torch.from_numpy(marks).flatten(1, 2)


LEAST = 0.15
"""Least share of a patch that a thing must cover to be what the patch lies on."""


def _names(thing: Thing) -> tuple[tuple[Iterable[str], str], ...]:
    return (COLOURS, thing.colour), (SHAPES, thing.shape), (SIZES, thing.size)


def words(scenes: Sequence[Scene]) -> Tensor:
    """Which colours, shapes, sizes and backgrounds there are, and whether two things, (n, 21) of 0 and 1."""
    said = [{scene.background, *(word for thing in scene.things for _, word in _names(thing))} for scene in scenes]
    for each, scene in zip(said, scenes, strict=True):
        each |= {"two"} if len(scene.things) == 2 else set()
    return torch.tensor([[float(word in each) for word in _WORDS] for each in said])


# ------------------------------------------------------------------------------------------------ saving


def save(out: Path, clip: Any, calibration: dict[str, float] | None = None) -> None:
    """Write a folder as published CLIPs have it, with weights in half precision.

    ``calibration`` is an entry of ``config.json`` of ours: see :mod:`langevin.zoo.scoring`.
    """
    copy.deepcopy(clip).half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8").replace('"float16"', '"float32"'))
    if calibration:
        config["calibration"] = calibration
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    make_tokenizer(out)
    looks = {
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": DEVIATION,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    (out / "preprocessor_config.json").write_text(json.dumps(looks, indent=2) + "\n", encoding="utf-8")
