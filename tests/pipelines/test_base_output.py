"""Outputs: attribute, key and index are the same thing, as in the reference."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.utils import BaseOutput as ReferenceOutput

from langevin.outputs import BaseOutput
from langevin.pipelines.output import ImagePipelineOutput


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
