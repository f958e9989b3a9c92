"""The whole cascade in one call: the reference's pictures, one set of seeds, one network in memory, one record."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import langevin
from langevin import ClassifierFreeGuidance, DiffusionPipeline, IFCascade
from langevin.cli.app import app
from langevin.media.settings import read_settings
from tests.pipelines.deepfloyd_checks import Stages, judges, markers
from tests.pipelines.family_checks import generator, mask, pil

SMALL, LARGE = "IFPipeline", "IFSuperResolutionPipeline"
CALL = dict(num_inference_steps=3, negative_prompt="ugly")


@pytest.fixture(scope="module")
def stages():
    return Stages()


@pytest.fixture
def upscaler(twins):
    import diffusers

    low = langevin.DDPMScheduler(), diffusers.DDPMScheduler()
    return twins("StableDiffusionUpscalePipeline", unet="upscale", low_res_scheduler=low)


def quiet(cascade):
    cascade.set_progress_bar_config(disable=True)
    return cascade


@pytest.fixture(scope="module")
def folders(stages, tmp_path_factory):
    """The two stages in folders, with all that belongs to them."""
    folder = tmp_path_factory.mktemp("stages")
    for name, place in ((SMALL, "one"), (LARGE, "two")):
        stages(name, **markers(), **judges(-99, -99))[0].save_pretrained(folder / place)
    return str(folder / "one"), str(folder / "two")


def test_all_sizes_are_those_of_the_references_stages_one_after_the_other(stages, upscaler):
    one, two = stages(SMALL), stages(LARGE)
    made = quiet(IFCascade(one[0], two[0], upscaler[0]))("A <b>cat</b>", seed=8, output_type="np", **CALL)
    told, untold = one[1].encode_prompt("A <b>cat</b>", negative_prompt="ugly", clean_caption=True)
    given = dict(prompt_embeds=told, negative_prompt_embeds=untold, num_inference_steps=3, output_type="pt")
    draws = generator(8)
    small = one[1](**given, generator=draws).images
    large = two[1](image=small, **given, generator=draws).images
    clamped = (large / 2 + 0.5).clamp(0, 1)
    last = upscaler[1]("A <b>cat</b>", image=clamped, generator=draws, output_type="np", **CALL).images
    for ours, theirs in zip(made.sizes, (small, large), strict=False):
        np.testing.assert_allclose(ours, (theirs / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), atol=1e-4)
    np.testing.assert_allclose(made.images, last, atol=1e-4)
    assert [images.shape[1] for images in made.sizes] == [16, 32, 64]
    assert made.images is made.sizes[-1]


def test_the_prompt_is_encoded_once(stages):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    runs = []
    handle = cascade.stages[0].text_encoder.register_forward_hook(lambda *args: runs.append(1))
    cascade("a cat", **CALL)
    handle.remove()
    assert len(runs) == 1


def test_a_picture_made_alone_with_its_own_seed_is_the_same(stages):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    made = cascade(["a cat", "a dog"], seed=5, num_images_per_prompt=2, output_type="np", **CALL)
    alone = cascade("a dog", seed=8, output_type="np", **CALL)
    for together, single in zip(made.sizes, alone.sizes, strict=True):
        np.testing.assert_allclose(together[3:], single, atol=1e-4)
    assert abs(made.images[2] - made.images[3]).max() > 1e-3


def test_a_short_prompt_beside_a_long_one_is_read_as_if_it_were_alone(stages):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    made = cascade(["a cat " * 20, "a dog"], seed=[1, 2], output_type="np", num_inference_steps=2)
    alone = cascade("a dog", seed=2, output_type="np", num_inference_steps=2)
    np.testing.assert_allclose(made.images[1:], alone.images, atol=1e-4)
    first = stages(SMALL)[0]("a dog", seed=2, output_type="np", num_inference_steps=2).images
    np.testing.assert_allclose(alone.sizes[0], first, atol=1e-4)


def test_stages_have_arguments_of_their_own(stages):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    calls = []
    seen = dict(callback=lambda i, t, x: calls.append((tuple(x.shape[2:]), int(t))), seed=1)
    each = [dict(timesteps=[900, 100]), dict(num_inference_steps=2, noise_level=10, height=40)]
    cascade("a cat", each=each, **seen)
    assert calls == [((16, 16), 900), ((16, 16), 100), ((40, 32), 500), ((40, 32), 0)]
    plain = cascade("a cat", seed=1, output_type="np", **CALL)
    other = cascade("a cat", seed=1, output_type="np", each=[{}, {"noise_level": 700}], **CALL)
    np.testing.assert_array_equal(plain.sizes[0], other.sizes[0])
    assert abs(plain.images - other.images).max() > 1e-3
    guided = cascade("a cat", seed=1, output_type="np", guiders=[ClassifierFreeGuidance(1.0)], **CALL)
    assert abs(plain.sizes[0] - guided.sizes[0]).max() > 1e-3
    assert abs(cascade("a (cat)1.9", seed=1, output_type="np", **CALL).images - plain.images).max() > 1e-3


def test_a_cascade_of_inpainting(stages):
    names = "IFInpaintingPipeline", "IFInpaintingSuperResolutionPipeline"
    both = [stages(name) for name in names]
    each = [
        dict(image=pil(16, 16), mask_image=mask()),
        dict(original_image=pil(32, 32), mask_image=mask(32, 32), num_inference_steps=4),
    ]
    made = quiet(IFCascade(both[0][0], both[1][0]))("a", each=each, seed=2, output_type="np", **CALL)
    told, untold = both[0][1].encode_prompt("a", negative_prompt="ugly")
    told = dict(prompt_embeds=told, negative_prompt_embeds=untold)
    draws = generator(2)
    small = both[0][1](**each[0], **told, num_inference_steps=3, generator=draws, output_type="pt").images
    large = both[1][1](image=small, **each[1], **told, generator=draws, output_type="np").images
    np.testing.assert_allclose(made.images, large, atol=1e-4)


def test_of_stages_given_by_name_one_is_in_memory_at_a_time(stages, folders, monkeypatch):
    wanted = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))("a cat", seed=3, output_type="np", **CALL)
    loaded, alive = [], []
    real = DiffusionPipeline.from_pretrained.__func__

    def watched(cls, name, **options):
        gc.collect()
        alive.append([part for part, network in loaded if network() is not None])
        pipe = real(cls, name, **options)
        networks = {part: network for part, network in pipe._networks().items() if part in ("unet", "text_encoder")}
        loaded.extend((part, weakref.ref(network)) for part, network in networks.items())
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(watched))
    cascade = quiet(IFCascade(*folders, device="cpu", safety_checker=None))
    made = cascade("a cat", seed=3, output_type="np", **CALL)
    assert [part for part, _ in loaded] == ["text_encoder", "unet", "unet"]
    assert alive == [[], [], []]
    np.testing.assert_array_equal(made.images, wanted.images)


def test_offloading_leaves_no_network_behind(stages):
    pytest.importorskip("accelerate")
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    plain = cascade("a cat", seed=3, output_type="np", **CALL).images
    cascade.enable_model_cpu_offload(device="cpu")
    order = []
    try:
        for k, pipe in enumerate(cascade.stages):
            for hook in pipe._hooks:
                leave = hook.offload
                hook.offload = lambda k=k, leave=leave: (order.append(f"away {k}"), leave())
            pipe.unet.register_forward_pre_hook(lambda *args, k=k: order.append(f"unet {k}"))
        cascade("a cat", seed=3, output_type="np", **CALL)
        begins = [order.index(f"unet {k}") for k in (0, 1)]
        assert "away 0" in order[: begins[0]]  # the text encoder
        assert "away 0" in order[max(i for i, one in enumerate(order) if one == "unet 0") : begins[1]]
        assert order[-1] == "away 1"
        np.testing.assert_array_equal(cascade("a cat", seed=3, output_type="np", **CALL).images, plain)
    finally:
        for pipe in cascade.stages:
            pipe.remove_all_hooks()
            pipe.unet._forward_pre_hooks.clear()


def test_flags_are_those_of_the_last_stage_and_every_size_is_marked(stages):
    two = stages(LARGE, **judges(-99, 99), **markers())[0]
    made = quiet(IFCascade(stages(SMALL)[0], two))("a", seed=1, **CALL)
    assert made.nsfw_detected == [False]
    assert made.watermark_detected == [True]
    assert np.asarray(made.images[0])[:24].max() == 0
    assert np.asarray(made.sizes[0][0]).max() > 0
    assert made.images[0].settings["cascade"] == ["", ""]
    assert len(quiet(IFCascade(stages(SMALL)[0]))("a", seed=1, return_dict=False, **CALL)) == 4


def test_a_cascade_is_ended_by_its_owner(stages):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    done = []

    def stop(call, i, t, tensors):
        done.append(i)
        cascade._interrupt = i == 1

    made = cascade("a", callback_on_step_end=stop, **CALL)
    assert done == [0, 1]
    assert len(made.sizes) == 1


# -- the record, and the command line


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


SHORT = ("--steps", "3", "--seed", "3", "--device", "cpu")


def test_the_command_line_makes_every_size_and_each_can_be_made_again(folders, tmp_path):
    out = tmp_path / "cat.png"
    stages = ["--cascade", folders[0], "--cascade", folders[1]]
    printed = run("generate", "a red cat", *stages, "--every-size", "--negative", "ugly", "--out", out, *SHORT).stdout
    assert "cat.png  (seed 3, 32x32)" in printed
    assert "cat-16x16.png  (16x16)" in printed
    settings = read_settings(out)
    assert settings["pipeline"] == "IFCascade"
    assert settings["cascade"] == list(folders)
    assert settings["prompt"] == "a red cat"
    assert [*settings["stages"]] == ["stage 1", "stage 2"]
    assert read_settings(tmp_path / "cat-16x16.png")["cascade"] == [folders[0]]
    for name in ("cat", "cat-16x16"):
        assert "identical: all" in run("again", tmp_path / f"{name}.png", "--yes").stdout
    assert "cannot be loaded" in run("again", out, code=1).stderr  # from a folder that nobody said may be loaded


def test_the_command_line_makes_a_small_picture_larger(folders, tmp_path):
    small = pil(16, 16)
    small.save(tmp_path / "small.png")
    options = ("--model", folders[1], "--noise", 20, "--out", tmp_path / "large.png", *SHORT)
    assert "32x32" in run("upscale", tmp_path / "small.png", "a red cat", *options).stdout
    assert read_settings(tmp_path / "large.png")["noise_level"] == 20
    assert "identical: all" in run("again", tmp_path / "large.png", "--yes").stdout


def test_own_arguments_and_schedulers_of_stages_are_followed(folders, tmp_path):
    other = langevin.DDPMScheduler(beta_schedule="linear", variance_type="learned_range")
    cascade = quiet(IFCascade(*folders, device="cpu", schedulers=[None, other]))
    own = dict(each=[{}, {"noise_level": 5, "num_inference_steps": 2}], seed=4, **CALL)
    picture = cascade("a cat", **own).images[0]
    plain = quiet(IFCascade(*folders, device="cpu"))("a cat", **own).images[0]
    assert np.asarray(picture).tobytes() != np.asarray(plain).tobytes()
    picture.save(tmp_path / "made.png")
    assert "identical: all" in run("again", tmp_path / "made.png", "--yes").stdout


def test_several_pictures_get_names_of_their_own(folders, tmp_path):
    stages = ["--cascade", folders[0], "--cascade", folders[1]]
    run("generate", "a", *stages, "--every-size", "--count", 2, "--out", tmp_path / "a.png", *SHORT)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["a-1-16x16.png", "a-1.png", "a-2-16x16.png", "a-2.png"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--every-size"], "--every-size is for a --cascade"),
        (["--cascade", "ONE", "--scheduler", "ddim"], "keep their own schedulers"),
        (["--cascade", "langevin/shapes"], "a cascade's first stage is one of IF's"),
        (["--cascade", "ONE", "--size", "64"], "takes no --size"),
    ],
)
def test_the_command_line_refuses_what_is_not_for_cascades(folders, options, says):
    options = [folders[0] if one == "ONE" else one for one in options]
    assert says in " ".join(run("generate", "a", *options, code=2).stderr.split())


def test_settings_that_ask_too_much_are_refused(folders, tmp_path):
    picture = quiet(IFCascade(*folders, device="cpu"))("a cat", seed=4, **CALL).images[0]
    wrong = [
        dict(each=[{"items": [["num_inference_steps", 10**8]]}]),
        dict(each=["a"]),
        dict(cascade=[1]),
        dict(stages={"stage 1": {"scheduler_config": {"num_train_timesteps": 10**9}}}),
        dict(stages={"stage 1": {"scheduler": "Nothing", "scheduler_config": {}}}),
        dict(freeu=dict(s1=1, s2=1, b1=1, b2=1)),
    ]
    for k, change in enumerate(wrong):
        changed = picture.copy()
        changed.settings = {**json.loads(json.dumps(picture.settings)), **change}
        changed.save(tmp_path / f"{k}.png")
        result = run("again", tmp_path / f"{k}.png", "--yes", code=1)
        assert "Traceback" not in result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(prompt=None), "prompt is missing"),
        (dict(prompt="a [cat:dog:0.5]"), "a prompt changes on the way"),
        (dict(each=["a"]), "each holds a str"),
        (dict(each=[{}, {"strenth": 1}]), "has 'strenth', which IFSuperResolutionPipeline does not take"),
        (dict(each=[{"noise_level": 1}]), "has 'noise_level', which IFPipeline does not take"),
        (dict(each=[{}, {"noise_level": -1}]), "noise_level is -1"),
        (dict(output_type="latent"), "output_type is 'latent'"),
    ],
)
def test_bad_input_gets_one_clear_line(stages, arguments, says):
    cascade = quiet(IFCascade(stages(SMALL)[0], stages(LARGE)[0]))
    with pytest.raises(ValueError, match=says) as caught:
        cascade(**{"prompt": "a", **CALL, **arguments})
    assert "\n" not in str(caught.value)


def test_stages_that_cannot_be_are_refused(stages, upscaler):
    with pytest.raises(ValueError, match="a cascade needs stages"):
        IFCascade()
    with pytest.raises(ValueError, match=r"a cascade's first stage is one of IF's.*StableDiffusionUpscalePipeline"):
        IFCascade(upscaler[0])
    with pytest.raises(ValueError, match="image: expected"):
        quiet(IFCascade(stages(LARGE)[0]))("a", **CALL)
    assert torch.is_grad_enabled()
