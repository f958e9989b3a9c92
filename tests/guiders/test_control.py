"""What a control network does as a guider: alone, with others, and where it is idle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from langevin import (
    AttendAndExcite,
    CFGPlusPlus,
    Control,
    ControlNetModel,
    Guider,
    ImageChannels,
    ImageStart,
    Inpaint,
    InstructGuidance,
    MultiControlNetModel,
    SafeGuidance,
    SelfAttentionGuidance,
    Windows,
)
from tests.helpers import in_threads
from tests.pipelines.control_checks import controlnets
from tests.pipelines.family_checks import Twins, images, picture, pil

CALL = dict(num_inference_steps=4, height=16, width=16)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    return Twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture(scope="module")
def net(twins, tmp_path_factory):
    return controlnets(twins, tmp_path_factory)[0]


@pytest.fixture(scope="module")
def other(twins, tmp_path_factory):
    return controlnets(twins, tmp_path_factory, seed=1)[0]


@pytest.fixture
def pipe(twins):
    return twins()[0]


class Asked:
    """What a network was asked, call by call, and how often its hint was read."""

    def __init__(self, network):
        self.network = network
        self.rows: list[int] = []
        self.told: list[dict] = []
        self.read = 0

    def __enter__(self):
        def look(module, args, kwargs):
            self.rows.append(len(kwargs["sample"] if "sample" in kwargs else args[0]))
            self.told.append(kwargs)

        def read(module, args):
            self.read += 1

        self.handles = [self.network.register_forward_pre_hook(look, with_kwargs=True)]
        if hasattr(self.network, "controlnet_cond_embedding"):
            self.handles.append(self.network.controlnet_cond_embedding.register_forward_pre_hook(read))
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def apart(a, b):
    return float(np.abs(a - b).max())


def test_it_changes_the_picture_and_the_control_picture_matters(pipe, net):
    plain = images(pipe, "a cat", **CALL)
    made = [images(pipe, "a cat", control=[Control(net, pil(seed=k))], **CALL) for k in (0, 1)]
    assert apart(made[0], plain) > 0.01
    assert apart(made[0], made[1]) > 0.003


def test_scale_zero_is_exactly_not_having_it(pipe, net):
    with Asked(net) as asked:
        made = images(pipe, "a cat", control=[Control(net, pil(), scale=0)], **CALL)
    np.testing.assert_array_equal(made, images(pipe, "a cat", **CALL))
    assert (asked.rows, asked.read) == ([], 0)


def test_a_little_scale_is_a_little_change(pipe, net):
    plain = images(pipe, "a cat", **CALL)
    steps = [
        apart(images(pipe, "a cat", control=[Control(net, pil(), scale=s)], **CALL), plain) for s in (1e-4, 1e-2, 1)
    ]
    assert 0 < steps[0] < steps[1] < steps[2]
    assert steps[0] < 1e-3


def test_the_picture_is_read_once_and_idle_steps_and_branches_are_not_asked_for(pipe, net):
    def rows(guidance=7.5, pictures=1, **options):
        with Asked(net) as asked:
            control = [Control(net, pil(), **options)]
            images(pipe, "a", control=control, guidance_scale=guidance, num_images_per_prompt=pictures, **CALL)
        assert asked.read == 1
        return asked.rows

    assert rows() == [2, 2, 2, 2]
    assert rows(pictures=3) == [6, 6, 6, 6]
    assert rows(guidance=1.0) == [1, 1, 1, 1]
    assert rows(start=0.25, stop=0.75) == [2, 2]
    assert rows(stop=0.2) == []
    assert rows(guess=True, pictures=2) == [2, 2, 2, 2]
    assert rows(guess=True, guidance=1.0) == [1, 1, 1, 1]


def test_one_picture_for_all_is_kept_once(pipe, net):
    with Asked(net) as asked:
        images(pipe, "a", control=[Control(net, pil())], num_images_per_prompt=2, **CALL)
    hint = asked.told[0]["embedded_cond"]
    assert hint.shape[0] == 4
    assert hint.untyped_storage().nbytes() == hint[0].nbytes


def test_outside_start_and_stop_the_network_is_told_nothing(pipe, net):
    with Asked(pipe.unet) as asked:
        images(pipe, "a cat", control=[Control(net, pil(), start=0.25, stop=0.75)], **CALL)
    assert ["mid_block_additional_residual" in told for told in asked.told] == [False, True, True, False]


def test_the_share_of_the_run_is_counted_from_where_it_begins(pipe, net):
    """Of 8 steps image to image at strength 0.5 does 4; half of those are 2."""
    begin = ImageStart(picture(count=1) * 2 - 1, 0.5)
    with Asked(net) as asked:
        images(
            pipe, "a", control=[Control(net, pil(), stop=0.5)], guiders=[begin], **{**CALL, "num_inference_steps": 8}
        )
    assert len(asked.rows) == 2


def test_guess_mode_tells_the_positive_branch_alone(pipe, net):
    with Asked(pipe.unet) as asked:
        images(pipe, "a", control=[Control(net, pil(), guess=True)], num_images_per_prompt=2, **CALL)
    for told in asked.told:  # negative, positive: two pictures each
        maps = (*told["down_block_additional_residuals"], told["mid_block_additional_residual"])
        assert all(not m[:2].any() and m[2:].any(dim=(1, 2, 3)).all() for m in maps)


def test_several_controls_are_summed_in_any_order_and_from_both_arguments(pipe, net, other):
    a, b = Control(net, pil(), 0.7), Control(other, pil(seed=1), stop=0.5)
    wanted = images(pipe, "a", control=[a, b], **CALL)
    np.testing.assert_allclose(images(pipe, "a", control=[b, a], **CALL), wanted, atol=1e-4)
    np.testing.assert_array_equal(images(pipe, "a", control=[a], guiders=[b], **CALL), wanted)
    for alone in (a, b):
        assert apart(images(pipe, "a", control=[alone], **CALL), wanted) > 0.01
    twice = images(pipe, "a", control=[Control(net, pil(), 0.4), Control(net, pil(), 0.6)], **CALL)
    np.testing.assert_allclose(twice, images(pipe, "a", control=[Control(net, pil())], **CALL), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_picture_for_all_or_one_each(pipe, net, count):
    """Two prompts, two pictures of each: row k has the picture of its prompt, or its own."""
    shown = [pil(seed=k) for k in range(count)]
    call = dict(num_images_per_prompt=2, seed=0, **CALL)
    made = images(pipe, ["a", "b"], control=[Control(net, shown)], **call)
    for row in range(4):
        mine = Control(net, shown[row * count // 4])
        alone = images(pipe, ["a", "b"][row // 2], control=[mine], seed=row, **CALL)[0]
        np.testing.assert_allclose(made[row], alone, atol=1e-4)


def test_a_network_in_another_dtype_is_asked_in_its_own(pipe, net):
    import copy

    wanted = images(pipe, "a cat", control=[Control(net, pil())], **CALL)
    for dtype, near in ((torch.float64, 1e-4), (torch.bfloat16, 0.2)):
        with Asked(pipe.unet) as asked:
            made = images(pipe, "a cat", control=[Control(copy.deepcopy(net).to(dtype), pil())], **CALL)
        assert asked.told[0]["mid_block_additional_residual"].dtype == torch.float32
        assert apart(made, wanted) < near


def test_an_offloaded_network(pipe, net):
    accelerate = pytest.importorskip("accelerate")
    import copy

    wanted = images(pipe, "a cat", control=[Control(net, pil())], **CALL)
    at_once, layer_by_layer = copy.deepcopy(net), copy.deepcopy(net)
    accelerate.cpu_offload_with_hook(at_once, torch.device("cpu"))
    accelerate.cpu_offload(layer_by_layer, torch.device("cpu"))
    assert layer_by_layer.device.type == "meta"
    for network in (at_once, layer_by_layer):
        np.testing.assert_array_equal(images(pipe, "a cat", control=[Control(network, pil())], **CALL), wanted)


def test_branches_that_come_later_are_controlled_too(pipe, net):
    class Late(Guider):
        """Brings a branch of its own in the middle of a run."""

        def needs(self, step):
            return ["late"] if "late" in step.branches else []

        def before(self, x, step):
            if step.index == 1:
                told = step.branches["positive"]
                step.branches["late"] = {"encoder_hidden_states": told["encoder_hidden_states"]}
            return x

    with Asked(net) as asked:
        images(pipe, "a cat", guiders=[Late(), Control(net, pil())], **CALL)
    assert asked.rows == [2, 3, 3, 3]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("guess", [False, True])
def test_windows_see_their_own_part_of_the_control_picture(pipe, net, batch, guess):
    control = Control(net, picture(16, 24, count=1), guess=guess)
    with Asked(net) as asked:
        windows = Windows(size=8, stride=4, batch=batch)
        images(pipe, "a", control=[control], guiders=[windows], num_inference_steps=1, height=16, width=24)
    hints = torch.cat([told["embedded_cond"] for told in asked.told])
    whole = net.embed_condition(picture(16, 24, count=1))
    parts = torch.cat([whole[..., :8], whole[..., 4:]])
    if not guess:  # both branches, for each group of windows
        parts = parts[[0, 0, 1, 1]] if batch == 1 else parts[[0, 1, 0, 1]]
    torch.testing.assert_close(hints, parts)


@pytest.mark.parametrize(
    ("unet", "guiders"),
    [
        ("sd1", lambda: [SelfAttentionGuidance(0.75)]),
        ("sd1", lambda: [SafeGuidance("dog", warmup_steps=0)]),
        ("sd1", lambda: [ImageStart(picture(count=1, seed=3) * 2 - 1, 0.75)]),
        ("sd1", lambda: [AttendAndExcite([2], attn_res=(8, 8))]),
        ("sd1", lambda: [CFGPlusPlus(0.6)]),
        ("sd1", lambda: [Windows(size=4, stride=2)]),
        ("sd1", lambda: [Inpaint(picture(count=1, seed=3) * 2 - 1, (picture(count=1)[:, :1] > 0.5).float())]),
        ("inpaint", lambda: [Inpaint(picture(count=1, seed=3) * 2 - 1, (picture(count=1)[:, :1] > 0.5).float())]),
        ("pix2pix", lambda: [InstructGuidance(), ImageChannels(picture(count=1, seed=3) * 2 - 1)]),
        ("sd1", lambda: [SelfAttentionGuidance(0.75), SafeGuidance("dog", warmup_steps=0), Windows(size=4, stride=2)]),
    ],
    ids=["sag", "safe", "img2img", "attend", "cfg++", "windows", "inpaint", "inpaint 9", "instruct", "three"],
)
def test_it_combines_and_each_part_has_its_effect(twins, net, unet, guiders):
    pipe, _ = twins(unet=unet)
    call = dict(num_images_per_prompt=2, **CALL)
    both = images(pipe, "a cat", control=[Control(net, pil())], guiders=guiders(), **call)
    assert np.isfinite(both).all()
    assert apart(both, images(pipe, "a cat", guiders=guiders(), **call)) > 0.01
    if unet == "sd1":
        assert apart(both, images(pipe, "a cat", control=[Control(net, pil())], **call)) > 0.01


def test_eight_threads_share_one_control(pipe, net):
    control = Control(net, pil())

    def make(k):
        size = 16 + 8 * (k % 2)
        call = dict(num_inference_steps=2, height=size, width=16, seed=k)
        return images(pipe, "a cat", control=[control], **call)

    serial = [make(k) for k in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, in_threads(make), strict=True))


def test_pictures_tell_of_the_control_that_made_them(pipe, net):
    settings = pipe("a", control=[Control(net, pil(), 0.5, stop=0.6)], seed=1, **CALL).images[0].settings
    told = settings["control"][0]
    assert (told["class"], told["scale"], told["stop"]) == ("Control", 0.5, 0.6)


def test_bad_settings_get_one_clear_line(pipe, net, other):
    def wrong(make, says):
        with pytest.raises(ValueError, match=says) as caught:
            make()
        assert "\n" not in str(caught.value)

    def call(**changed):
        return lambda: pipe("a", control=[Control(**{"network": net, "image": pil(), **changed})], **CALL)

    wrong(lambda: Control(MultiControlNetModel([net, other]), pil()), "one Control for each")
    wrong(lambda: Control(pipe.unet, pil()), "UNet2DConditionModel as its network")
    wrong(lambda: Control(net, pil(), start=0.6, stop=0.5), "0 <= start < stop <= 1")
    wrong(lambda: Control(net, pil(), stop=1.2), "0 <= start < stop <= 1")
    wrong(call(image=None), "image is missing")
    wrong(call(image=[pil()] * 3), "3 control images for 1 prompts")
    wrong(call(image=torch.rand(5, 16, 16)), "takes .batch, 3, height, width")
    coarser = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8, 8))
    wrong(call(network=coarser), "sees the picture as 4 x 4, where x is 8 x 8")
