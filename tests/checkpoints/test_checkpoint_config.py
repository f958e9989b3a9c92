"""Configs as JSON: what is remembered, carried over, ignored, and written; the reference is the oracle."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.configuration_utils import ConfigMixin as ReferenceConfig
from diffusers.configuration_utils import register_to_config as reference_register
from hypothesis import given, settings
from hypothesis import strategies as st

import langevin
from langevin.checkpoints.config import ConfigMixin, FrozenConfig, register_to_config
from langevin.checkpoints.files import read_json, to_json
from tests.checkpoints.nets import Net, one_clear_line

SETTINGS = {"a": 1, "b": (1, 2), "c": None, "rate": 0.5}


class Thing(ConfigMixin):
    config_name = "thing.json"
    ignore_for_config = ["part"]

    @register_to_config
    def __init__(self, a=1, b=(1, 2), c=None, rate=0.5, part=None, _private=3):
        self.part = part


class ReferenceThing(ReferenceConfig):
    config_name = "thing.json"
    ignore_for_config = ["part"]

    @reference_register
    def __init__(self, a=1, b=(1, 2), c=None, rate=0.5, part=None, _private=3):
        self.part = part


def visible(config):
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}


# -- what is remembered and carried over


@pytest.mark.parametrize("given", [{}, {"a": 5}, {"b": [3], "c": "x"}, {"a": 1}, {"part": 9}])
def test_constructor_arguments_become_the_config_as_in_the_reference(given):
    ours, theirs = Thing(**given), ReferenceThing(**given)
    assert visible(ours.config) == visible(theirs.config)
    assert set(ours.config["_use_default_values"]) == set(theirs.config["_use_default_values"])


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ({}, {}),
        ({"a": 5, "zzz": 3}, {}),
        ({"a": 5, "_class_name": "Other", "_diffusers_version": "0.6.0", "old": [1]}, {"rate": 0.25}),
        ({"a": 5, "_use_default_values": ["a"]}, {}),
        ({"_private": 7, "c": {"x": 1}}, {"b": [7], "nobody": 1}),
    ],
)
def test_from_config_handles_known_unknown_and_missing_keys_as_the_reference(config, overrides):
    ours, ours_unused = Thing.from_config(config, return_unused_kwargs=True, **overrides)
    theirs, theirs_unused = ReferenceThing.from_config(config, return_unused_kwargs=True, **overrides)
    assert visible(ours.config) == visible(theirs.config)
    assert visible(ours_unused) == visible(theirs_unused)
    assert ours.config["_private"] == theirs.config["_private"]


SCHEDULERS = ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"]
ORIGINS = [
    ("DDIMScheduler", {"beta_start": 0.1, "set_alpha_to_one": False}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DDPMScheduler", {}),
]


@pytest.mark.parametrize("from_file", [False, True], ids=["live", "file"])
@pytest.mark.parametrize("target", SCHEDULERS)
@pytest.mark.parametrize("origin", ORIGINS, ids=lambda o: o[0])
def test_swapping_schedulers_carries_over_the_same_settings_as_the_reference(origin, target, from_file, tmp_path):
    name, given = origin
    swapped = []
    for library in (langevin, diffusers):
        scheduler = getattr(library, name)(**given)
        if from_file:
            scheduler.save_pretrained(tmp_path)
            scheduler = getattr(library, name).from_pretrained(tmp_path)
        there = getattr(library, target).from_config(scheduler.config)
        back = getattr(library, name).from_config(there.config)
        swapped.append((visible(there.config), visible(back.config)))
    assert swapped[0] == swapped[1]


def test_a_setting_given_by_position_is_carried_over():
    # the reference loses it
    assert Thing.from_config(Thing(7).config).config.a == 7
    assert ReferenceThing.from_config(ReferenceThing(7).config).config.a == 1


def test_overrides_take_precedence():
    assert Thing.from_config({"a": 5}, a=6).config.a == 6


def test_arguments_of_the_class_itself_hold_over_those_it_gives_to_its_base():
    class Double(Thing):
        @register_to_config
        def __init__(self, a=1, extra=2, **more):
            super().__init__(a=a * 2)

    made = Double(a=3, other=9)
    assert (made.config.a, made.config.extra, made.config.other, made.config.rate) == (3, 2, 9, 0.5)
    assert Double.from_config(made.config).config.a == 3
    assert "a" not in made.config["_use_default_values"]
    assert {"extra", "rate"} <= set(made.config["_use_default_values"])


# -- warnings: one, and only where something is odd


def test_unknown_keys_are_kept_and_told_once(caplog):
    made = Thing.from_config({"a": 5, "zzz": 3, "yyy": 4})
    assert made.config.zzz == 3
    assert [r.message.count("\n") for r in caplog.records] == [0]
    assert "zzz=3" in caplog.text
    assert "thing.json" in caplog.text


def test_misspelt_overrides_are_told(caplog):
    Thing.from_config({}, raet=1)
    assert "'raet'" in caplog.text


@pytest.mark.parametrize("target", SCHEDULERS)
def test_the_old_config_of_stable_diffusion_1_warns_of_nothing(target, tmp_path, caplog):
    config = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "clip_sample": False}
    config |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
    config |= {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        ours = getattr(langevin, target).from_pretrained(tmp_path)
    assert not caplog.records
    theirs = getattr(diffusers, target).from_pretrained(tmp_path)
    assert visible(ours.config) == visible(theirs.config)
    assert ours.config["_class_name"] == target


# -- reading it


def test_a_config_is_read_only_and_has_attributes():
    config = Thing(a=5).config
    assert config.a == config["a"] == 5
    for change in (
        lambda: config.__setitem__("a", 1),
        lambda: setattr(config, "a", 1),
        lambda: config.update(a=1),
        lambda: config.pop("a"),
        lambda: config.clear(),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change()
    with pytest.raises(AttributeError, match="no key 'nope'; it has: a, b"):
        _ = config.nope


def test_a_config_survives_pickling_and_copying():
    made = Thing(a=5)
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made)):
        assert twin.config == made.config
        assert isinstance(twin.config, FrozenConfig)


def test_settings_as_attributes_still_work_with_a_warning():
    with pytest.warns(FutureWarning, match=r"read it as \.config\.rate"):
        assert Thing(rate=0.25).rate == 0.25
    with pytest.warns(FutureWarning, match=r"read it as \.config\.width"):
        assert Net().width == 8
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = Net().nothing


# -- on disk


def test_the_reference_reads_what_is_written_and_the_other_way_round(tmp_path):
    made = Thing(a=5, b=[3, 4], c={"deep": (1, 2)})
    made.save_config(tmp_path / "ours")
    theirs = ReferenceThing.from_config(ReferenceThing.load_config(tmp_path / "ours"))
    assert visible(theirs.config) == json.loads(json.dumps(visible(made.config)))
    theirs.save_config(tmp_path / "theirs")
    written = [(tmp_path / side / "thing.json").read_text() for side in ("ours", "theirs")]
    assert written[0] == written[1].replace("ReferenceThing", "Thing")
    assert visible(Thing.from_pretrained(tmp_path / "theirs").config) == visible(theirs.config)


def test_arrays_tuples_paths_and_dtypes_have_a_json_form():
    values = {"a": np.array([1, 2.5]), "b": (np.float32(0.5), np.int64(3)), "c": Path("/x/y"), "rate": torch.bfloat16}
    written = json.loads(Thing(**values).to_json_string())
    assert (written["a"], written["b"], written["c"], written["rate"]) == ([1.0, 2.5], [0.5, 3], "/x/y", "bfloat16")


def test_a_setting_without_a_json_form_is_named():
    with one_clear_line("'c.deep'", "object"):
        Thing(c={"deep": object()}).to_json_string()


def test_where_it_was_read_from_is_not_written(tmp_path):
    Net().save_pretrained(tmp_path)
    loaded = Net.from_pretrained(tmp_path)
    assert loaded.config["_name_or_path"] == str(tmp_path)
    assert str(tmp_path) not in loaded.to_json_string()


def test_a_subfolder_and_a_file_can_be_given(tmp_path):
    Thing(a=4).save_config(tmp_path / "sub")
    assert Thing.from_pretrained(tmp_path, subfolder="sub").config.a == 4
    assert Thing.load_config(tmp_path / "sub/thing.json")["a"] == 4
    assert Thing.load_config(tmp_path, subfolder="sub", return_unused_kwargs=True, q=1)[1] == {"q": 1}
    assert Thing.load_config(tmp_path / "sub", return_commit_hash=True)[1] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(values=st.fixed_dictionaries({}, optional=dict.fromkeys(SETTINGS, json_values)), extra=json_values)
def test_any_settings_come_back_from_disk(values, extra, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    made = Thing.from_config({**values, "extra_key": extra})
    made.save_config(folder)
    again = Thing.from_pretrained(folder)
    assert visible(again.config) == json.loads(json.dumps(visible(made.config)))
    assert again.config.extra_key == extra
    assert visible(ReferenceThing.from_config(ReferenceThing.load_config(folder)).config) == visible(again.config)


@settings(max_examples=100, deadline=None)
@given(values=st.dictionaries(st.text(), json_values, max_size=6))
def test_json_text_is_what_json_says(values):
    assert json.loads(to_json(values)) == values


# -- errors


def test_errors_are_one_clear_line(tmp_path):
    with one_clear_line("thing.json", str(tmp_path), "the folder has: nothing"):
        Thing.from_pretrained(tmp_path)
    (tmp_path / "thing.json").write_text('{"a": 1,')
    with one_clear_line("thing.json", "not valid JSON"):
        Thing.from_pretrained(tmp_path)
    (tmp_path / "thing.json").write_bytes(b"\xff\xfe\x00")
    with one_clear_line("not valid JSON"):
        read_json(tmp_path / "thing.json")
    (tmp_path / "thing.json").write_text("[1]")
    with one_clear_line("JSON list"):
        Thing.from_pretrained(tmp_path)
    (tmp_path / "thing.json").write_text("[" * 100_000)
    with one_clear_line("not valid JSON"):
        Thing.from_pretrained(tmp_path)
    with one_clear_line("no folder", "nowhere"):
        Thing.from_pretrained(tmp_path / "nowhere")
    for useless in (None, 3, [1]):
        with one_clear_line("needs a dict or a folder"):
            Thing.from_config(useless)
    with one_clear_line("Cannot save"):
        Thing().save_config(tmp_path / "thing.json")
