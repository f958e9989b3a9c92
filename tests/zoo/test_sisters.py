"""How the sisters of langevin/shapes begin: their smaller UNets, their shares of its parts, their recipes."""

import importlib
import json

import pytest
import torch

import langevin
from langevin import zoo
from langevin.zoo import loop, sisters, train_attention, world

RECIPES = {"inpainting": 9, "instruct": 8, "attention": 4}


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


def test_a_narrow_unet_keeps_three_of_four_channels(frozen):
    large = frozen.unet.state_dict()
    unet = sisters.smaller_unet(frozen.unet, middle=False, narrow=True, pooled_text=False)
    small = unet.state_dict()
    kept = [i for i in range(96) if i % 4 != 3]
    assert unet.config.block_out_channels == (48, 72)
    assert not any(key.startswith("add_embedding") for key in small)
    for name in ("norm2.weight", "attn1.to_out.0.bias"):
        name = f"down_blocks.1.attentions.0.transformer_blocks.0.{name}"
        torch.testing.assert_close(small[name], large[name][kept], rtol=0, atol=0)
    keys = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight"
    torch.testing.assert_close(small[keys], large[keys.replace("up_blocks.0", "up_blocks.1")][kept], rtol=0, atol=0)
    into, source = "up_blocks.0.resnets.1.conv1.weight", large["up_blocks.1.resnets.1.conv1.weight"]
    both = [i for i in range(160) if i % 4 != 3]  # what comes up, and what was skipped
    torch.testing.assert_close(small[into], source[kept][:, both], rtol=0, atol=0)


def test_only_attention_tells_the_narrow_unet_of_the_text(frozen):
    unet = sisters.smaller_unet(frozen.unet, middle=False, narrow=True, pooled_text=False)
    x, states = torch.randn(1, 4, 16, 16), frozen.states(["a red circle", "a blue star"])

    def looking_away(q, k, v, mask, layer, **where):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return out * 0 if layer.is_cross_attention else out

    with torch.no_grad():
        one, other = (unet(x, 500, states[k : k + 1], attention=looking_away).sample for k in (0, 1))
        seeing = unet(x, 500, states[:1]).sample
    assert torch.equal(one, other)
    assert not torch.equal(one, seeing)


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


# ------------------------------------------------------------------------------------------------ words and places


def test_words_are_told_from_one_another_and_found_where_their_things_are(frozen):
    scene = world.Scene(
        (world.Thing("circle", "red", "small", 12, 12, 7), world.Thing("star", "blue", "medium", 48, 44, 10)), "black"
    )
    text = "a picture of a blue star and a small red circle on a black background"
    named = train_attention.naming_tokens(frozen.tokenizer, [text, ""], [scene, scene])
    pieces = frozen.tokenizer.convert_ids_to_tokens(frozen.tokenizer(text).input_ids)
    first, second = ([pieces[i].removesuffix("</w>") for i in row.nonzero()[:, 0]] for row in named[0])
    assert first == ["small", "red", "circle"]
    assert second == ["blue", "star"]
    assert not named[1].any()
    places = train_attention.where_things_are([scene])[0].unflatten(1, (8, 8))
    assert places[0, 1, 1] == 1  # the middle of the circle, 8 pixels to a place
    assert places[0, 4:].sum() == 0
    assert places[1, 5, 6] > 0.6  # a star's middle: x 48, y 44
    assert places[1, :, :4].sum() == 0


def test_grounding_is_least_where_words_are_looked_at_by_their_things_alone():
    places = torch.zeros(1, 2, 64)
    places[0, 0, :4] = places[0, 1, 60:] = 1.0
    named = torch.zeros(1, 2, 8, dtype=torch.bool)
    named[0, 0, 1] = named[0, 0, 2] = named[0, 1, 5] = True

    def loss(words, elsewhere=0.0):
        """Each thing's places look at ``words`` of it; all places look at word 1 a little."""
        maps = torch.zeros(1, 64, 8)
        maps[0, :, 0] = 1 - elsewhere
        maps[0, :, 1] = elsewhere
        for region, k in ((slice(0, 4), words[0]), (slice(60, 64), words[1])):
            maps[0, region] = 0
            maps[0, region, k] = 1.0 / len(k)
        return train_attention.grounding(maps, named, places).item()

    best = loss(([1, 2], [5]))
    assert best < 0.01
    assert loss(([1, 2], [5]), elsewhere=0.2) > best + 0.1
    assert loss(([5], [1, 2])) > 1  # the wrong way round
    assert train_attention.grounding(torch.zeros(1, 64, 8), named & False, places) == 0
