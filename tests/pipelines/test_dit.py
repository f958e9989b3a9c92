"""DiT against the reference."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import langevin
from langevin import ClassifierFreeGuidance, DiffusionPipeline, DiTPipeline
from tests.helpers import reference_parts
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.family_checks import SCHEDULERS, assert_same, generator, images
from tests.prompts.readers_parts import random

LABELS = {0: "tench, Tinca tinca", 1: "goldfish", 7: "cock"}
NETS = {
    "learned variance": dict(out_channels=8),
    "plain": dict(out_channels=4, patch_size=1, attention_bias=False, activation_fn="gelu", num_attention_heads=4),
}
CALL = dict(class_labels=[0, 7], num_inference_steps=4)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function (networks, scheduler) -> (our pipeline, the reference's)."""
    import diffusers

    saved = {}

    def make(nets="learned variance", scheduler="ddim"):
        if nets not in saved:
            folder = tmp_path_factory.mktemp("dit")
            sizes = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8)
            net = random(diffusers.DiTTransformer2DModel(**sizes | NETS[nets]))
            theirs = diffusers.DiTPipeline(net, reference_parts(folder)["vae"], diffusers.DDIMScheduler())
            theirs.save_pretrained(folder / "saved")
            saved[nets] = DiffusionPipeline.from_pretrained(folder / "saved"), theirs, folder / "saved"
        name, config = SCHEDULERS[scheduler]
        pipes = []
        for library, pipe in zip((langevin, diffusers), saved[nets][:2], strict=True):
            parts = {**pipe.components, "scheduler": getattr(library, name)(**config)}
            pipes.append(library.DiTPipeline(**parts, id2label=LABELS))
            pipes[-1].set_progress_bar_config(disable=True)
        return tuple(pipes)

    make.folder = lambda: saved["learned variance"][2]
    return make


@pytest.mark.parametrize("scheduler", ["ddim", "ddim v trailing", "pndm", "dpm++ 2m karras", "unipc"])
@pytest.mark.parametrize("nets", NETS)
def test_pictures_are_the_references(make, nets, scheduler):
    assert_same(make(nets, scheduler), **CALL)


@pytest.mark.parametrize(
    "options",
    [
        dict(guidance_scale=1.0),
        dict(guidance_scale=9.0, class_labels=[1]),
        dict(generator=lambda: [generator(1), generator(2)]),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_references_numbers(make, options):
    assert_same(make(), **CALL | options)


def test_names_of_classes(make):
    ours, theirs = make()
    assert ours.labels == theirs.labels == {"Tinca tinca": 0, "cock": 7, "goldfish": 1, "tench": 0}
    assert ours.get_label_ids(["cock", "tench"]) == theirs.get_label_ids(["cock", "tench"]) == [7, 0]
    assert ours.get_label_ids("goldfish") == [1]  # the reference takes the letters
    with pytest.raises(ValueError, match="no class 'gold fish'; nearest: goldfish"):
        ours.get_label_ids("gold fish")
    with pytest.raises(ValueError, match=r"no class 'zzz'; the 4 names are in .labels"):
        ours.get_label_ids(["zzz"])


def test_a_learned_variance_is_used_and_drawn_from_the_seed(make):
    ours, _ = make()
    made = {}
    for kind in ("fixed_small", "learned_range"):
        ours.scheduler = langevin.DDPMScheduler(variance_type=kind)
        made[kind] = images(ours, **CALL, seed=3)
        np.testing.assert_array_equal(images(ours, **CALL, seed=3), made[kind])
    assert abs(made["fixed_small"] - made["learned_range"]).max() > 1e-3


def test_each_picture_has_its_own_class_and_seed(make):
    ours, _ = make()
    two = images(ours, **CALL, seed=[3, 9])
    np.testing.assert_allclose(two[1:], images(ours, 7, num_inference_steps=4, seed=9), atol=1e-4)
    assert abs(images(ours, [1], num_inference_steps=4, seed=9) - two[1:]).max() > 1e-3
    guided = images(ours, **CALL, seed=3, guiders=[ClassifierFreeGuidance(9.0)])
    np.testing.assert_array_equal(guided, images(ours, **CALL, seed=3, guidance_scale=9.0))


def test_callbacks(make):
    ours, _ = make()
    seen = []

    def stop(call, i, t, tensors):
        seen.append((tensors["latents"].shape, call.guidance_scale))
        call._interrupt = i == 1

    ours(**CALL, callback_on_step_end=stop)
    assert seen == [((2, 4, 8, 8), 4.0)] * 2


def test_folders_go_both_ways(make, tmp_path):
    import diffusers

    ours, _ = make()
    ours.save_pretrained(tmp_path / "ours")
    read = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    there = diffusers.DiTPipeline.from_pretrained(tmp_path / "ours")
    there.set_progress_bar_config(disable=True)
    assert read.labels == there.labels == ours.labels
    assert_same((read, there), **CALL)


def test_the_published_index_and_config_are_read(make, tmp_path):
    ours, _ = make()
    shutil.copytree(make.folder(), tmp_path / "old")
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.12.0.dev0",
        "id2label": {str(number): name for number, name in LABELS.items()},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index))
    file = tmp_path / "old" / "transformer" / "config.json"
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    file.write_text(json.dumps({**json.loads(file.read_text()), **old, "only_cross_attention": False}))
    read = DiffusionPipeline.from_pretrained(tmp_path / "old")
    assert type(read) is DiTPipeline
    assert read.labels == ours.labels
    read.scheduler = ours.scheduler
    np.testing.assert_array_equal(images(read, **CALL, seed=3), images(ours, **CALL, seed=3))


def test_it_can_be_made_again(make, tmp_path):
    assert_made_again(make()[0], tmp_path, row=1, **CALL, seed=3, guidance_scale=2.0)


@pytest.mark.parametrize("labels", [[], [1001], [-1], ["cock"], None])
def test_bad_labels_get_one_clear_line(make, labels):
    with pytest.raises(ValueError, match="class_labels") as caught:
        make()[0](labels)
    assert "\n" not in str(caught.value)
