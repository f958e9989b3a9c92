"""Image to image that keeps depth against the reference, and what it does with depth."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import langevin
from langevin import DepthChannel, ImageStart, StableDiffusionDepth2ImgPipeline
from tests.helpers import in_threads
from tests.pipelines.again_checks import assert_made_again
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import (
    SCHEDULERS,
    assert_checkpoints_go_both_ways,
    assert_same,
    generator,
    images,
    picture,
    pil,
    steps,
)

NAME = "StableDiffusionDepth2ImgPipeline"
STEPS = dict(num_inference_steps=4)


@pytest.fixture(scope="module")
def estimator():
    """A depth estimator with random weights, and what prepares pictures for it."""
    import transformers

    torch.manual_seed(1)
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False,
    )  # fmt: skip
    net = transformers.DPTForDepthEstimation(config).eval()
    for weight in net.parameters():  # so that its maps are not the same everywhere
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    for weight in net.head.parameters():
        torch.nn.init.normal_(weight, 0.05, 0.3)
    return net, transformers.DPTImageProcessor(size={"height": 32, "width": 32}, keep_aspect_ratio=False)


@pytest.fixture
def both(twins, estimator):
    net, processor = estimator
    parts = dict(depth_estimator=(net, net), feature_extractor=(processor, processor))
    return lambda scheduler="ddim", unet="depth": twins(NAME, unet=unet, scheduler=scheduler, **parts)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_pictures_are_the_reference_ones(both, scheduler):
    assert_same(both(scheduler), "a cat", image=pil(), **steps(scheduler, 5))


@pytest.mark.parametrize("scheduler", ["ddim v trailing", "euler karras v"])
def test_so_they_are_with_stable_diffusion_2(both, scheduler):
    assert_same(both(scheduler, "depth sd2"), "a cat", image=pil(), depth_map=torch.rand(1, 9, 7), **STEPS)


DEPTH = torch.linspace(3, 900, 5 * 6).view(1, 5, 6)


@pytest.mark.parametrize(
    "options",
    [
        dict(depth_map=DEPTH),
        dict(strength=1.0),
        dict(strength=0.3),
        dict(guidance_scale=1.0, depth_map=DEPTH),
        dict(negative_prompt="ugly", num_images_per_prompt=2),
        dict(eta=0.8, clip_skip=1),
        dict(image=pil(37, 26)),
        dict(image=picture(count=1), depth_map=DEPTH),
    ],
    ids=lambda o: ",".join(o),
)
def test_options_give_the_reference_numbers(both, options):
    assert_same(both(), "a cat", **{"image": pil(), **STEPS, **options})


def test_several_pictures_each_with_a_depth_of_its_own(both):
    call = dict(image=[pil(), pil(seed=1)], **STEPS)
    assert_same(both(), ["a cat", "a dog"], **call)
    assert_same(both(), ["a cat", "a dog"], num_images_per_prompt=2, **call)
    maps = torch.cat([DEPTH, DEPTH.flip(-1).square()])
    assert_same(both(), ["a cat", "a dog"], depth_map=maps, generator=lambda: [generator(1), generator(2)], **call)


def test_the_scale_of_a_map_and_what_lies_in_other_pictures_do_not_matter(both):
    ours, _ = both()
    call = dict(image=[pil(), pil(seed=1)], seed=3, **STEPS)
    maps = torch.cat([DEPTH, DEPTH.flip(-1)])
    wanted = images(ours, ["a", "b"], depth_map=maps, **call)
    other = torch.cat([DEPTH * 50 + 7, DEPTH.flip(-1)])
    np.testing.assert_allclose(images(ours, ["a", "b"], depth_map=other, **call), wanted, atol=1e-4)
    alone = images(ours, "b", image=pil(seed=1), depth_map=DEPTH.flip(-1), seed=4, **STEPS)
    np.testing.assert_allclose(alone, wanted[1:], atol=1e-5)
    assert abs(images(ours, ["a", "b"], depth_map=maps.flip(-2), **call) - wanted).max() > 0.01


def test_depth_is_estimated_alike_from_pictures_arrays_and_tensors(both):
    ours, _ = both()
    shown = []
    handle = ours.unet.register_forward_pre_hook(lambda module, args: shown.append(args[0][:, 4:]))
    array = np.asarray(pil())
    given = (pil(), pil().convert("RGBA"), torch.from_numpy(array / np.float32(255)).permute(2, 0, 1), array / 255.0)
    for image in given:
        images(ours, "a cat", image=image, strength=0.3, **STEPS)
    handle.remove()
    assert shown[0].amin() == -1
    assert shown[0].amax() == 1
    for other in shown[1:]:
        torch.testing.assert_close(other, shown[0], atol=2e-3, rtol=0)


def test_kinds_of_depth_maps(both):
    ours, _ = both()
    grey = Image.fromarray(DEPTH[0].numpy() / 4).convert("L")
    plain = torch.from_numpy(np.array(grey))
    call = dict(image=pil(), **STEPS)
    wanted = images(ours, "a cat", depth_map=plain[None], **call)
    for same in (grey, [grey], grey.convert("RGB"), plain, plain[None, None].double(), plain.numpy()):
        np.testing.assert_array_equal(images(ours, "a cat", depth_map=same, **call), wanted)
    flat = images(ours, "a cat", depth_map=torch.ones(1, 4, 4), **call)
    assert np.isfinite(flat).all()
    assert abs(flat - wanted).max() > 0.01


def test_latents_in_the_pictures_place(both):
    ours, _ = both()
    latents = ours.vae.encode(picture(count=1) * 2 - 1).latent_dist.mode() * ours.vae.config.scaling_factor
    made = images(ours, "a cat", image=latents, depth_map=DEPTH, **STEPS)
    assert made.shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="give a depth_map"):
        ours("a cat", image=latents, **STEPS)


def test_callbacks_see_and_change_the_depth(both):
    seen: list[list] = [[], []]
    made = []
    for pipe, log in zip(both(), seen, strict=True):

        def look(pipe, i, t, tensors, log=log):
            log.append((i, int(t), pipe.num_timesteps, *(tensors[k].clone() for k in ("latents", "depth_mask"))))
            return {"depth_mask": tensors["depth_mask"] * -0.5} if i == 0 else {}

        call = dict(callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "depth_mask"])
        made.append(images(pipe, "a cat", image=pil(), num_images_per_prompt=2, **call, **STEPS))
    np.testing.assert_allclose(*made, atol=1e-4)
    for ours, theirs in zip(*seen, strict=True):
        assert ours[:3] == theirs[:3]
        for a, b in zip(ours[3:], theirs[3:], strict=True):
            torch.testing.assert_close(a, b, atol=5e-4, rtol=1e-4)


def test_the_older_callback(both):
    logs: list[list] = [[], []]
    for pipe, log in zip(both(), logs, strict=True):
        images(pipe, "a", image=pil(), callback=lambda i, t, x, log=log: log.append((i, int(t))), callback_steps=2,
               **STEPS)  # fmt: skip
    assert logs[0] == logs[1]
    assert logs[0]


@pytest.mark.parametrize("output", ["latent", "pt", "pil"])
def test_outputs_have_the_reference_forms(both, output):
    ours, theirs = (pipe("a", image=pil(), output_type=output, generator=generator(), **STEPS) for pipe in both())
    assert type(ours).__name__ == type(theirs).__name__ == "ImagePipelineOutput"
    assert type(ours.images) is type(theirs.images)
    alone = both()[0]("a", image=pil(), output_type="np", return_dict=False, **STEPS)
    assert isinstance(alone, tuple)
    assert len(alone) == 1


def test_folders_load_on_both_sides(both, tmp_path):
    assert_checkpoints_go_both_ways(both(), tmp_path, image=pil(), **STEPS)


def test_parts_are_shared_with_the_family(both):
    ours, _ = both()
    plain = langevin.StableDiffusionPipeline.from_pipe(ours, feature_extractor=None)
    assert plain.unet is ours.unet
    made = images(plain, "a cat", guiders=[DepthChannel(DEPTH), ImageStart(picture(count=1) * 2 - 1)], height=16,
                  width=16, **STEPS)  # fmt: skip
    np.testing.assert_array_equal(made, images(ours, "a cat", image=picture(count=1), depth_map=DEPTH, **STEPS))
    back = StableDiffusionDepth2ImgPipeline.from_pipe(plain, depth_estimator=None, feature_extractor=None)
    with pytest.raises(ValueError, match="no depth_estimator"):
        back("a cat", image=pil(), **STEPS)


def test_it_stands_under_a_control_network(both, twins, tmp_path_factory):
    ours, _ = both()
    net, _ = controlnets(twins, tmp_path_factory)
    call = dict(image=pil(), **STEPS)
    controlled = images(ours, "a cat", control=[langevin.Control(net, picture(seed=5))], **call)
    assert abs(controlled - images(ours, "a cat", **call)).max() > 0.01
    none = images(ours, "a cat", control=[langevin.Control(net, picture(seed=5), scale=0.0)], **call)
    np.testing.assert_array_equal(none, images(ours, "a cat", **call))


def test_windows_cut_the_depth_too(both):
    ours, _ = both()
    seen = []
    handle = ours.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1:]))
    made = images(ours, "a", image=pil(16, 32), guiders=[langevin.Windows(8, 4)], **STEPS)
    handle.remove()
    assert made.shape == (1, 16, 32, 3)
    assert set(seen) == {(5, 8, 8)}


def test_it_can_be_made_again(both, tmp_path):
    ours, _ = both()
    grey = [Image.new("L", (4, 4), k) for k in (0, 200)]
    for one in grey:
        one.putpixel((0, 0), 90)
    call = dict(image=[pil(), pil(seed=1)], seed=1, strength=0.7, eta=1.0, **STEPS)
    assert_made_again(ours, tmp_path, ["a", "b"], row=1, depth_map=grey, **call)
    assert_made_again(ours, tmp_path, ["a", "b"], row=1, **call)


def test_half_precision_is_near(both):
    ours, _ = both()
    half = StableDiffusionDepth2ImgPipeline(**{name: copy.deepcopy(part) for name, part in ours.components.items()})
    half.set_progress_bar_config(disable=True)
    call = dict(image=pil(), seed=1, **STEPS)
    made = images(half.to(torch.bfloat16), "a cat", **call)
    np.testing.assert_allclose(made, images(ours, "a cat", **call), atol=0.15)
    assert made.std() > 0.01


def test_eight_threads_with_a_picture_each(both):
    ours, _ = both()

    def one(k):
        return ours("a", image=pil(seed=k), num_inference_steps=2, seed=1, output_type="np").images

    serial = [one(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(one), strict=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(image=None), "image is missing"),
        (dict(depth_map=torch.zeros(3)), r"depth_map is a Tensor \(3,\); \(n, height, width\)"),
        (dict(depth_map="far"), "depth_map is a str"),
        (dict(depth_map=torch.rand(3, 4, 4)), "3 images for a batch of 1"),
        (dict(depth_map=torch.full((1, 4, 4), float("nan"))), "without NaN"),
    ],
)
def test_bad_input_gets_one_clear_line(both, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        both()[0]("a", **{"image": pil(), **STEPS, **options})
    assert "\n" not in str(caught.value)


def test_a_network_without_a_channel_for_depth_is_refused(both):
    with pytest.raises(ValueError, match=r"takes 4 channels, where x and what is joined to it \(depth_mask\) have 5"):
        both(unet="sd1")[0]("a", image=pil(), **STEPS)
