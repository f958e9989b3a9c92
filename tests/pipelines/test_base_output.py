"""Outputs: attribute, key and index are the same thing, as in the reference."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput as ReferenceOutput
from torch.utils import _pytree as pytree

from langevin import UNet2DModel
from langevin.outputs import (
    AutoencoderKLOutput,
    BaseOutput,
    ControlNetOutput,
    DecoderOutput,
    ImagePipelineOutput,
    StableDiffusionPipelineOutput,
    StableDiffusionSafePipelineOutput,
    UNet2DConditionOutput,
    UNet2DOutput,
)


@dataclass
class Ours(BaseOutput):
    images: Any = None
    scores: Any = None
    extra: Any = None


@dataclass
class Theirs(ReferenceOutput):
    images: Any = None
    scores: Any = None
    extra: Any = None


@pytest.mark.parametrize(
    "values", [{"images": 1}, {"images": 1, "extra": 3}, {"scores": 2}, {"images": {"a": 1}, "extra": 2}]
)
def test_access_is_that_of_the_reference(values):
    ours, theirs = Ours(**values), Theirs(**values)
    assert ours.to_tuple() == theirs.to_tuple()
    assert list(ours) == list(theirs)
    assert len(ours) == len(theirs)
    assert dict(ours.items()) == dict(theirs.items())
    for key in values:
        assert ours[key] == theirs[key] == getattr(ours, key)
        assert key in ours
    assert ours[0] == theirs[0]
    assert ours[-1] == theirs[-1]
    assert ours[:1] == theirs[:1]
    assert ours.get("nothing") is None


def test_what_is_none_is_not_there():
    output = Ours(images=1)
    with pytest.raises(KeyError, match=r"Ours has no 'scores'; it has: images"):
        output["scores"]
    with pytest.raises(IndexError):
        output[1]
    output.scores = 2
    output["images"] = 5
    assert output.to_tuple() == (5, 2)


def test_it_is_rebuilt_from_a_mapping_as_accelerate_does():
    from accelerate.utils import convert_outputs_to_fp32

    output = convert_outputs_to_fp32(lambda: Ours(images=torch.ones(2, dtype=torch.float16)))()
    assert isinstance(output, Ours)
    assert isinstance(output, Mapping)
    assert output.images.dtype == torch.float32


def test_outputs_with_tensors_compare_by_identity_and_pickle():
    output = ImagePipelineOutput(torch.ones(2, 3))
    assert output == output
    assert output != ImagePipelineOutput(torch.ones(2, 3))
    assert hash(output)
    assert torch.equal(pickle.loads(pickle.dumps(output)).images, output.images)
    assert repr(output).startswith("ImagePipelineOutput(images=tensor(")


OUTPUTS = {
    UNet2DOutput: {"sample": torch.ones(2)},
    UNet2DConditionOutput: {"sample": torch.ones(2)},
    DecoderOutput: {"sample": torch.ones(2)},
    AutoencoderKLOutput: {"latent_dist": torch.ones(2)},
    ControlNetOutput: {
        "down_block_res_samples": (torch.ones(1), torch.zeros(2)),
        "mid_block_res_sample": torch.ones(3),
    },
    ImagePipelineOutput: {"images": torch.ones(2)},
    StableDiffusionPipelineOutput: {"images": torch.ones(2), "nsfw_content_detected": [True]},
    StableDiffusionSafePipelineOutput: {
        "images": torch.ones(2),
        "nsfw_content_detected": [False],
        "unsafe_images": torch.zeros(1),
        "applied_safety_concept": "fire",
    },
}


@pytest.mark.parametrize("kind", OUTPUTS, ids=lambda kind: kind.__name__)
def test_those_of_networks_and_of_pipelines_are_mappings_alike(kind):
    values = OUTPUTS[kind]
    output = kind(**values)
    assert list(output) == list(output.keys()) == list(values)
    assert {**output} == dict(output) == dict(output.items()) == values
    assert list(output.values()) == list(output.to_tuple()) == list(values.values())
    assert output[0] is output[next(iter(values))] is next(iter(values.values()))
    assert output[:1] == (output[0],)
    assert kind(**output).to_tuple() == output.to_tuple()
    shallow, deep, kept = copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))
    assert shallow[0] is output[0]
    assert type(deep) is type(kept) is type(shallow) is kind
    assert deep[0] is not output[0]
    assert list(kept) == list(deep) == list(values)


@pytest.mark.parametrize("kind", OUTPUTS, ids=lambda kind: kind.__name__)
def test_pytree_sees_the_tensors_inside(kind):
    output = kind(**OUTPUTS[kind])
    leaves, form = pytree.tree_flatten(output)
    assert all(torch.equal(a, b) for a, b in zip(leaves, pytree.tree_leaves(OUTPUTS[kind]), strict=True) if a is not b)
    back = pytree.tree_unflatten(leaves, form)
    assert type(back) is kind
    assert back.keys() == output.keys()
    twice = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor * 2, output)
    assert type(twice) is kind
    assert sum(leaf.sum() for leaf in pytree.tree_leaves(twice) if isinstance(leaf, torch.Tensor)) == 2 * sum(
        leaf.sum() for leaf in leaves if isinstance(leaf, torch.Tensor)
    )


def test_pytree_sees_what_it_sees_in_the_references_and_keeps_fields_that_are_none():
    ours, theirs = Ours(images=[1], extra=3), Theirs(images=[1], extra=3)
    assert pytree.tree_leaves(ours) == pytree.tree_leaves(theirs) == [1, 3]
    assert pytree.tree_map(str, ours).to_tuple() == pytree.tree_map(str, theirs).to_tuple() == (["1"], "3")
    mapped = pytree.tree_map(str, StableDiffusionPipelineOutput([1], None))
    assert (mapped.images, mapped.nsfw_content_detected) == (["1"], None)
    nested = pytree.tree_map(str, Ours(images={"a": 1}))
    assert nested.images == {"a": "1"}, "a dict that is a field is not taken for the fields"


@pytest.mark.parametrize("way", ["compile", "export"])
def test_networks_that_return_them_are_compiled_and_exported(way):
    stages = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    net = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **stages).eval()
    inputs = torch.randn(1, 3, 8, 8), torch.tensor([3])
    with torch.no_grad():
        if way == "compile":
            made = torch.compile(net, backend="eager", fullgraph=True)
        else:
            torch.export.save(torch.export.export(net, inputs), file := io.BytesIO())
            made = torch.export.load(io.BytesIO(file.getvalue())).module()
        output = made(*inputs)
        assert type(output) is UNet2DOutput
        torch.testing.assert_close(output.sample, net(*inputs).sample, atol=1e-5, rtol=1e-5)
