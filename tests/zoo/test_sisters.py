"""How the sisters of langevin/shapes begin: their smaller UNets, their shares of its parts, their recipes."""

import importlib
import json

import pytest
import torch

import langevin
from langevin import zoo
from langevin.zoo import loop, sisters

RECIPES = {"inpainting": 9, "instruct": 8}


@pytest.fixture(scope="module")
def frozen():
    return sisters.Frozen.load(zoo.path("langevin/shapes"))


def test_every_row_of_a_pool_comes_once_in_each_pass():
    seen = [loop.draw(step, batch=4, pool=12, passes=2) for step in range(12)]
    assert [number for number, _ in seen] == [0] * 6 + [1] * 6
    for first in range(0, 12, 3):
        assert sorted(row for _, rows in seen[first : first + 3] for row in rows.tolist()) == list(range(12))
    assert seen[0][1].tolist() != seen[3][1].tolist()


@pytest.mark.parametrize(("extra", "middle"), [(5, False), (4, True)])
def test_the_smaller_unet_is_the_upper_part_of_the_larger_one(frozen, extra, middle):
    large = frozen.unet.state_dict()
    unet = sisters.smaller_unet(frozen.unet, extra, middle)
    small = unet.state_dict()
    assert len(unet.config.block_out_channels) == 2
    assert (unet.mid_block is not None) == middle
    for mine, theirs in {
        "down_blocks.1.attentions.0.proj_in.weight": "down_blocks.1.attentions.0.proj_in.weight",
        "up_blocks.0.attentions.1.proj_out.weight": "up_blocks.1.attentions.1.proj_out.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "up_blocks.1.resnets.0.conv1.weight": "up_blocks.2.resnets.0.conv1.weight",
        "add_embedding.proj.weight": "add_embedding.proj.weight",
        "conv_out.weight": "conv_out.weight",
    }.items():
        torch.testing.assert_close(small[mine], large[theirs], rtol=0, atol=0)
    conv = small["conv_in.weight"]
    torch.testing.assert_close(conv[:, :4], large["conv_in.weight"], rtol=0, atol=0)
    assert conv.shape[1] == 4 + extra
    assert not conv[:, 4:].any()
    narrower, wider = small["up_blocks.0.resnets.0.conv1.weight"], large["up_blocks.1.resnets.0.conv1.weight"]
    torch.testing.assert_close(narrower, wider[:, -narrower.shape[1] :], rtol=0, atol=0)


def test_extra_channels_change_nothing_at_first(frozen):
    unet = sisters.smaller_unet(frozen.unet, 4, middle=True)
    x, states = torch.randn(2, 4, 16, 16), frozen.states(["a red circle", ""])
    with torch.no_grad():
        one, other = (
            unet(torch.cat([x, e], 1), 500, states).sample for e in (torch.zeros_like(x), torch.randn_like(x))
        )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run_resume_and_save_what_the_box_ships(name, tmp_path, monkeypatch):
    recipe = importlib.import_module(f"langevin.zoo.train_{name}")
    monkeypatch.setattr(recipe, "POOL", 16)
    for steps in (1, 2):
        recipe.train(zoo.path("langevin/shapes"), tmp_path, steps=steps, batch=4)
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["step"] == 2
    unet = langevin.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    assert unet.config.in_channels == RECIPES[name]
    box = zoo.path(f"langevin/shapes-{name}")
    for file in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        assert json.loads((tmp_path / file).read_text()) == json.loads((box / file).read_text()), file


def test_the_recipe_for_outlines_runs_and_leaves_the_unet_alone(tmp_path, monkeypatch, frozen):
    from langevin.zoo import train_outline as recipe

    monkeypatch.setattr(recipe, "POOL", 16)
    monkeypatch.setattr(sisters.Frozen, "load", classmethod(lambda cls, model: frozen))
    before = {key: value.clone() for key, value in frozen.unet.state_dict().items()}
    recipe.train(zoo.path("langevin/shapes"), tmp_path, steps=2, batch=4)
    assert all(torch.equal(before[key], value) for key, value in frozen.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in frozen.unet.parameters())
    made = langevin.ControlNetModel.from_pretrained(tmp_path)
    shipped = langevin.ControlNetModel.from_pretrained(zoo.path("langevin/shapes-outline"))
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in shipped.state_dict().items()}


def test_a_new_control_network_adds_nothing(frozen):
    from langevin.zoo.train_outline import control_network

    network = control_network(frozen.unet)
    states = frozen.states(["a red circle", ""])
    with torch.no_grad():
        down, middle = network(
            torch.randn(2, 4, 16, 16), 500, states, controlnet_cond=torch.rand(2, 3, 64, 64), return_dict=False
        )
    assert not any(residual.any() for residual in (*down, middle))
