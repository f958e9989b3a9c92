"""Every task with every guider, under every control, with every kind of solver: each part runs and has its effect."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch

import langevin
from langevin import (
    AttendAndExcite,
    ClassifierFreeGuidance,
    Control,
    ControlNetModel,
    ImageStart,
    Inpaint,
    InstructGuidance,
    SafeGuidance,
    SelfAttentionGuidance,
    Windows,
)
from tests.helpers import in_threads
from tests.pipelines.family_checks import picture

STEPS = 4
SCHEDULERS = {
    "ddim": langevin.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
    "euler a": langevin.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
    "dpm++": langevin.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
    "heun": langevin.HeunDiscreteScheduler(beta_schedule="scaled_linear"),
    "pndm": langevin.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
}
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., :9] = 1
# task -> (class, which UNet, what its call gets)
TASKS = {
    "text to image": ("StableDiffusionPipeline", "sd1", {}),
    "image to image": ("StableDiffusionImg2ImgPipeline", "sd1", dict(image=picture(), strength=0.8)),
    "inpainting": ("StableDiffusionInpaintPipeline", "sd1", dict(image=picture(), mask_image=MASK)),
    "inpainting, 9 channels": ("StableDiffusionInpaintPipeline", "inpaint", dict(image=picture(), mask_image=MASK)),
    "instruction": ("StableDiffusionInstructPix2PixPipeline", "pix2pix", dict(image=picture())),
    "panorama": (
        "StableDiffusionPanoramaPipeline",
        "sd1",
        dict(height=16, width=24, window_size=8, window_stride=2, view_batch_size=2),
    ),
}
# walked through with one scheduler and one control network, since each of them costs as much as text to image
LATER_TASKS = {
    "depth": (
        "StableDiffusionDepth2ImgPipeline",
        "depth",
        dict(image=picture(), depth_map=torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(3))),
    ),
    "upscaling": ("StableDiffusionUpscalePipeline", "upscale", dict(image=picture(8, 8))),
    "latent upscaling": ("StableDiffusionLatentUpscalePipeline", "latent upscale", dict(image=picture(8, 8))),
}
LATER = "euler a"
# guider -> (with its effect, and the same without any)
EXCITE = dict(attn_res=(4, 4), thresholds={1: 0.6})
GUIDERS = {
    "none": None,
    "self-attention": (SelfAttentionGuidance(1.5), SelfAttentionGuidance(0.0)),
    "attend and excite": (
        AttendAndExcite([1, 3], 2, **EXCITE),
        AttendAndExcite([1, 3], 0, attn_res=(4, 4), thresholds={}),
    ),
    "safe": (SafeGuidance("dog", warmup_steps=1, threshold=0.5), SafeGuidance("dog", scale=0.0)),
    "interval": (ClassifierFreeGuidance(7.5, 0.3, 0.8), ClassifierFreeGuidance(7.5)),
}
OF_INSTRUCTIONS = {"interval": (InstructGuidance(7.5, 1.5, start=0.3, stop=0.8), InstructGuidance(7.5, 1.5))}


@pytest.fixture(scope="module")
def nets(twins):
    """Two control networks that say something: their last layers begin as zeros."""
    torch.manual_seed(3)
    unet = twins()[0].unet
    made = []
    for _ in range(2):
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.15)
        made.append(net)
    return made


@pytest.fixture(scope="module")
def controls(nets):
    """control -> (with its effect, the same without any)."""
    one, two = nets
    return {
        "none": ((), ()),
        "one": ((Control(one, picture(seed=8)),), (Control(one, picture(seed=8), scale=0.0),)),
        "two": (
            (Control(one, picture(seed=8), 0.7, stop=0.6), Control(two, picture(seed=9), guess=True, start=0.3)),
            (Control(one, picture(seed=8), 0.0), Control(two, picture(seed=9), 0.0, guess=True)),
        ),
    }


@pytest.fixture(scope="module")
def paint(twins, controls):
    """A function that makes the picture of a combination; pictures are kept."""
    pipes = {}
    more = dict(requires_safety_checker=False, low_res_scheduler=langevin.DDPMScheduler(), depth_estimator=None)
    for task, (cls, unet, _) in {**TASKS, **LATER_TASKS}.items():
        components = twins(unet=unet)[0].components
        takes = inspect.signature(getattr(langevin, cls).__init__).parameters
        for name in [LATER] if task in LATER_TASKS else SCHEDULERS:
            parts = {**components, **more, "scheduler": SCHEDULERS[name]}
            pipe = getattr(langevin, cls)(**{part: value for part, value in parts.items() if part in takes})
            pipe.set_progress_bar_config(disable=True)
            pipes[cls, unet, name] = pipe
    kept: dict = {}

    def make(task, guider="none", control="none", scheduler="ddim", *, idle=(), fresh=False, **options):
        key = (task, guider, control, scheduler, tuple(idle), str(sorted(options)))
        if key not in kept or fresh:
            cls, unet, call = {**TASKS, **LATER_TASKS}[task]
            pair = (OF_INSTRUCTIONS if task == "instruction" else {}).get(guider, GUIDERS[guider])
            guiders = [pair["guider" in idle]] if pair else []
            chosen = controls[control]["control" in idle]
            images = pipes[cls, unet, scheduler](
                "a (red)1.3 cat",
                **{"num_inference_steps": STEPS, "seed": 5, "output_type": "np", **call, **options},
                guiders=guiders,
                control=chosen,
            ).images
            if fresh:
                return images
            kept[key] = images
        return kept[key]

    make.pipes = pipes
    return make


COMBINATIONS = [
    *itertools.product(TASKS, GUIDERS, ("none", "one", "two"), SCHEDULERS),
    *itertools.product(LATER_TASKS, GUIDERS, ("none", "one"), [LATER]),
]


@pytest.mark.parametrize(("task", "guider", "control", "scheduler"), COMBINATIONS, ids=str)
def test_every_combination_runs_and_every_part_has_its_effect(paint, task, guider, control, scheduler):
    image = paint(task, guider, control, scheduler)
    assert np.isfinite(image).all()
    assert image.std() > 0.01
    if guider != "none":
        assert abs(image - paint(task, "none", control, scheduler)).max() > 1e-4, "the guider has no effect"
    if control != "none":
        assert abs(image - paint(task, guider, "none", scheduler)).max() > 1e-4, "the control has no effect"


@pytest.mark.parametrize(
    ("task", "guider", "control"), itertools.product(TASKS, GUIDERS, ("one", "two")), ids=lambda part: part
)
def test_strength_zero_is_exactly_not_having_it(paint, task, guider, control):
    scheduler = "euler a"
    without_control = paint(task, guider, "none", scheduler)
    np.testing.assert_array_equal(paint(task, guider, control, scheduler, idle=("control",)), without_control)
    if guider != "none":
        neither = paint(task, "none", control, scheduler)
        np.testing.assert_array_equal(paint(task, guider, control, scheduler, idle=("guider",)), neither)


@pytest.mark.parametrize("scheduler", ["euler a", "heun"])
def test_eight_threads_at_once_make_the_pictures_that_one_makes_alone(paint, scheduler):
    """All combinations of tasks, guiders and controls, on pipelines that share their networks."""
    each = list(itertools.product(TASKS, GUIDERS, ("none", "two")))
    again = in_threads(lambda k: [paint(*each[n], scheduler, fresh=True) for n in range(k, len(each), 8)])
    for k, images in enumerate(again):
        for n, image in zip(range(k, len(each), 8), images, strict=True):
            np.testing.assert_array_equal(image, paint(*each[n], scheduler), err_msg=" + ".join(each[n]))


def test_tasks_are_guiders_and_stack_too(paint):
    """A panorama that begins at a picture, under control, with self-attention guidance and a concept to avoid."""
    pipe = paint.pipes["StableDiffusionPipeline", "sd1", "ddim"]
    wide = picture(16, 24)[None] * 2 - 1
    parts = [
        ImageStart(wide, 0.75),
        Windows(8, 4),
        SelfAttentionGuidance(1.0),
        SafeGuidance("dog", warmup_steps=0, threshold=0.5),
    ]

    def make(guiders):
        return pipe("a cat", 16, 24, 4, guiders=guiders, seed=1, output_type="np").images

    whole = make(parts)
    for k in range(len(parts)):
        assert abs(make(parts[:k] + parts[k + 1 :]) - whole).max() > 1e-4, type(parts[k]).__name__


EDITS_BY_TEXT = {
    "semantic": (
        "SemanticStableDiffusionPipeline",
        dict(editing_prompt="dog", edit_warmup_steps=0, edit_threshold=0.5),
    ),
    "cycle": ("CycleDiffusionPipeline", dict(source_prompt="a dog", image=picture(), eta=0.5)),
    "zero": (
        "StableDiffusionPix2PixZeroPipeline",
        dict(source_prompts=["cat"], target_prompts=["dog"], cross_attention_guidance_amount=50.0),
    ),
    "edited": ("StableDiffusionModelEditingPipeline", {}),
}


@pytest.mark.parametrize("task", EDITS_BY_TEXT)
def test_edits_by_text_take_guiders_and_control(paint, controls, task):
    cls, call = EDITS_BY_TEXT[task]
    base = paint.pipes["StableDiffusionPipeline", "sd1", "ddim"]
    pipe = getattr(langevin, cls).from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    if task == "edited":
        pipe.with_augs = []
        pipe.edit_model("cat", "dog cat")

    def make(pipe=pipe, call=call, **more):
        return pipe("a (red)1.3 cat", num_inference_steps=STEPS, seed=5, output_type="np", **call, **more).images

    alone = make()
    assert abs(alone - make(base, {})).max() > 1e-4
    parts = dict(guiders=[SelfAttentionGuidance(1.5)], control=controls["one"][0])
    both = make(**parts)
    for name in parts:
        assert abs(make(**{name: parts[name]}) - both).max() > 1e-4, f"{name} is not all there is"
    np.testing.assert_array_equal(make(control=controls["one"][1]), alone)


@pytest.mark.parametrize("task", [task for task in EDITS_BY_TEXT if task != "cycle"])
@pytest.mark.parametrize("control", ["none", "one"])
def test_edits_by_text_stay_inside_a_mask(paint, controls, task, control):
    """What the reference refuses: every way of editing, in a part of a picture, under a control picture."""
    cls, call = EDITS_BY_TEXT[task]
    base = paint.pipes["StableDiffusionPipeline", "sd1", "ddim"]
    pipe = getattr(langevin, cls).from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    if task == "edited":
        pipe.with_augs = []
        pipe.edit_model("cat", "dog cat")
    whole = picture()
    hole = Inpaint(2 * whole[None] - 1, MASK, keep_outside=True)

    def make(pipe, call):
        options = dict(num_inference_steps=STEPS, seed=5, output_type="np", control=controls[control][0])
        return pipe("a cat", guiders=[hole], **options, **call).images

    edited, plain = make(pipe, call), make(base, {})
    assert abs(edited - plain).max() > 1e-4, "the edit has no effect"
    outside = (MASK[0] == 0).expand(3, -1, -1)
    shown = torch.from_numpy(edited[0]).movedim(-1, 0)
    torch.testing.assert_close(shown[outside], whole[outside], atol=1e-6, rtol=0)


def test_two_guiders_that_choose_the_beginning_are_refused(paint):
    pipe = langevin.CycleDiffusionPipeline.from_pipe(paint.pipes["StableDiffusionPipeline", "sd1", "ddim"])
    hole = Inpaint(2 * picture()[None] - 1, MASK)
    with pytest.raises(ValueError, match=r"begin|start"):
        pipe("a cat", "a dog", picture(), num_inference_steps=STEPS, eta=0.5, guiders=[hole])


@pytest.mark.parametrize("task", ["image to image", "inpainting", "inpainting, 9 channels", "panorama"])
def test_semantic_guidance_in_other_tasks(paint, controls, task):
    cls, unet, call = TASKS[task]
    pipe = paint.pipes[cls, unet, "euler a"]
    options = dict(warmup_steps=0, threshold=0.5)

    def make(*guiders, **more):
        images = pipe("a cat", num_inference_steps=STEPS, seed=5, output_type="np", guiders=guiders, **call, **more)
        return images.images

    plain, semantic = make(), make(langevin.SemanticGuidance("dog", **options))
    assert abs(plain - semantic).max() > 1e-4
    np.testing.assert_array_equal(make(langevin.SemanticGuidance("dog", scale=0.0, **options)), plain)
    under = make(langevin.SemanticGuidance("dog", **options), control=controls["one"][0])
    assert abs(under - semantic).max() > 1e-4


# -- what is idle is not computed


FURTHER = ("ControlNetImg2ImgPipeline", "ControlNetInpaintPipeline", "InpaintPipelineLegacy")


@pytest.mark.parametrize("name", [f"StableDiffusion{name}" for name in FURTHER])
@pytest.mark.parametrize("guider", [name for name in GUIDERS if name != "none"])
def test_further_tasks_take_guiders_and_control(twins, nets, controls, name, guider):
    """One solver each; the parts of these tasks are those of the tasks above."""
    components = {**twins()[0].components, "controlnet": nets[0], "scheduler": SCHEDULERS["euler a"]}
    cls = getattr(langevin, name)
    takes = cls._arguments()[0]
    pipe = cls(**{part: value for part, value in components.items() if part in takes}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = dict(image=picture(), num_inference_steps=STEPS, seed=5, output_type="np")
    call |= {} if name.endswith("Img2ImgPipeline") else {"mask_image": MASK}
    call |= {"control_image": picture(seed=8)} if "ControlNet" in name else {"image": 2 * picture() - 1}

    def paint(guiders=(), control=()):
        return pipe("a (red)1.3 cat", **call, guiders=guiders, control=control).images

    plain, (acting, idle) = paint(), GUIDERS[guider]
    assert abs(paint([acting]) - plain).max() > 1e-4
    assert abs(paint([acting], controls["two"][0]) - paint([acting])).max() > 1e-4
    np.testing.assert_array_equal(paint([idle], controls["two"][1]), plain)


@pytest.fixture
def rows(paint, nets, monkeypatch):
    """Counts the rows that go through the networks: (of the UNet at each call, of the control networks)."""
    seen: tuple[list[int], list[int]] = ([], [])
    unets = {id(pipe.unet): pipe.unet for pipe in paint.pipes.values()}.values()

    def count(calls):
        return lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["sample"]))

    hooks = [net.register_forward_pre_hook(count(seen[0]), with_kwargs=True) for net in unets]
    hooks += [net.register_forward_pre_hook(count(seen[1]), with_kwargs=True) for net in nets]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("task", "rows_with_guidance"),
    [
        ("text to image", [2] * STEPS),
        ("image to image", [2] * 3),
        ("inpainting", [2] * STEPS),
        ("inpainting, 9 channels", [2] * STEPS),
        ("instruction", [3] * STEPS),
        ("panorama", [4, 2] * STEPS),
    ],
)
def test_without_guidance_only_the_prompt_is_computed(paint, rows, task, rows_with_guidance):
    paint(task, fresh=True)
    assert rows[0] == rows_with_guidance
    rows[0].clear()
    paint(task, fresh=True, guidance_scale=1.0)
    branches = 3 if task == "instruction" else 2
    assert rows[0] == [n // branches for n in rows_with_guidance]


GUIDED = {
    "none": [2, 2, 2, 2],
    "self-attention": [2, 1] * 4,
    "attend and excite": None,  # by its thresholds: see the tests of the guider
    "safe": [3, 3, 3, 3],  # its momentum builds up during the warm-up
    "interval": [1, 1, 2, 2],  # progress 0, 0.25, 0.5, 0.75
}


@pytest.mark.parametrize("guider", [name for name, calls in GUIDED.items() if calls])
def test_guiders_ask_for_what_they_need_and_no_more(paint, rows, guider):
    paint("text to image", guider, fresh=True)
    assert rows[0] == GUIDED[guider]
    rows[0].clear()
    paint("text to image", guider, fresh=True, idle=("guider",))
    assert rows[0] == GUIDED["none"]


def test_a_concept_without_momentum_is_not_computed_during_the_warm_up(paint, rows):
    pipe = paint.pipes["StableDiffusionPipeline", "sd1", "ddim"]
    pipe("a cat", num_inference_steps=4, guiders=[SafeGuidance("dog", warmup_steps=2, momentum_scale=0.0)])
    assert rows[0] == [2, 2, 3, 3]


def test_attend_and_excite_costs_nothing_where_it_does_nothing(paint, rows):
    pipe = paint.pipes["StableDiffusionPipeline", "sd1", "ddim"]
    pipe("a cat", num_inference_steps=4, guiders=[AttendAndExcite([1], 2, {}, attn_res=(4, 4))])
    assert rows[0] == [1, 2, 1, 2, 2, 2]


def test_controls_are_asked_between_their_start_and_end_only(paint, rows):
    paint("text to image", control="two", fresh=True)
    # the first: steps 0 and 1, both branches; the second: steps 2 and 3, guessing, so the prompt's branch alone
    assert rows[1] == [2, 2, 1, 1]
    rows[1].clear()
    paint("image to image", control="two", fresh=True)  # three calls are left: shares 0, 1/3, 2/3
    assert rows[1] == [2, 1, 1]
    rows[1].clear()
    paint("text to image", control="two", fresh=True, idle=("control",))
    assert rows[1] == []
