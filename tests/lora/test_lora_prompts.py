"""LoRAs named in prompts."""

from __future__ import annotations

import time

import numpy as np
import pytest

from langevin.prompts.loras import take_loras
from tests.lora.lora_makers import fresh, random_lora
from tests.pipelines.family_checks import images

READ = {
    "<lora:ink:0.8> a cat": (" a cat", {"ink": 0.8}),
    "a <lora:ink> cat": ("a  cat", {"ink": 1.0}),
    "a cat<lora:v1.5 ink:-.5>": ("a cat", {"v1.5 ink": -0.5}),
    "<lora:a:1><lora:b:2>x": ("x", {"a": 1.0, "b": 2.0}),
    "<lora:a:0.5:0.7>": ("", {"a": {"text_encoder": 0.5, "unet": 0.7}}),
    "<lora:a:te=0.5:unet=0>": ("", {"a": {"text_encoder": 0.5, "unet": 0.0}}),
    "<lora:a:unet=0.3>": ("", {"a": {"text_encoder": 1.0, "unet": 0.3}}),
    "a <cat> and <hypernet:x:1>": ("a <cat> and <hypernet:x:1>", {}),
    "a (red:1.3) [cat]": ("a (red:1.3) [cat]", {}),
}


@pytest.mark.parametrize("text", READ)
def test_the_web_uis_way(text):
    assert take_loras(text, "a1111") == READ[text]
    assert take_loras(text, "compel") == READ[text]
    assert take_loras(text, "none") == (text, {})
    assert take_loras(text, "comfyui") == (text, {})


def test_compels_way():
    assert take_loras("a cat withLora(ink, 0.8)", "compel") == ("a cat ", {"ink": 0.8})
    assert take_loras('("a", "b").blend(1, 2) useLora( x )', "compel") == ('("a", "b").blend(1, 2) ', {"x": 1.0})
    assert take_loras("(a cat, withLora(x,.5))++", "compel") == ("(a cat, )++", {"x": 0.5})
    for text in ("becauseLora(x)", "notwithLora(x)", "withLora()", "withLora(a b)"):
        assert take_loras(text, "compel") == (text, {})
    assert take_loras("withLora(x)", "a1111") == ("withLora(x)", {})


def test_compel_itself_reads_the_same_text_and_weights():
    from compel.prompt_parser import PromptParser

    for text in ("a cat withLora(ink, 0.8)", "withLora(ink) a red cat", "a useLora(ink,0.5) cat++"):
        theirs = PromptParser().parse_conjunction(text)
        left, loras = take_loras(text, "compel")
        assert loras == {lora.model: lora.weight for lora in theirs.lora_weights}
        words = " ".join(fragment.text for fragment in theirs.prompts[0].children)
        assert left.replace("++", "").split() == words.split()


def test_lists_agree_and_wrong_weights_are_one_line():
    assert take_loras(["<lora:a>x", "y<lora:a:1>"], "a1111") == (["x", "y"], {"a": 1.0})
    assert take_loras(None, "a1111") == (None, {})
    with pytest.raises(ValueError, match="name different LoRAs"):
        take_loras(["<lora:a>x", "y"], "a1111")
    for text in ("<lora:a:much>", "<lora:a:1:2:3>", "<lora:a:nan>", "<lora:a:vae=1>", "withLora(a, 1.2.3)"):
        with pytest.raises(ValueError, match="write <lora:name:0") as caught:
            take_loras(text, "compel")
        assert "\n" not in str(caught.value)


def test_long_prompts_take_time_in_proportion():
    began = time.perf_counter()
    for text in (
        "<lora:" * 20000,
        "withLora(" * 20000,
        "<lora:a:" + "1:" * 20000,
        " " * 100_000 + "withLora",
        "<lora:a>" * 9000,
    ):
        try:
            take_loras(text, "compel")
        except ValueError:
            continue
    assert time.perf_counter() - began < 5


def test_a_prompt_weighs_what_is_loaded(twins):
    pipe, _ = fresh(twins)
    for name, seed in (("ink", 1), ("v1.5-oil", 2)):
        layers = random_lora(pipe.unet, seed=seed)
        state = {
            f"unet.{n}.lora.{s}.weight": t
            for n, pair in layers.items()
            for s, t in zip(("down", "up"), pair, strict=True)
        }
        pipe.load_lora_weights(state, adapter_name=name)
    pipe.set_adapters("v1.5-oil", 0.3)

    def paint(prompt, **call):
        return images(pipe, prompt, num_inference_steps=2, seed=3, **call)

    both = paint("a cat", lora={"ink": 0.8, "v1.5-oil": 0.3})
    assert np.array_equal(paint("<lora:ink:0.8>a cat"), both)
    assert np.array_equal(paint("<lora:ink:0.8>a cat", prompt_weighting="a1111"), both)
    assert np.array_equal(paint("a cat withLora(ink, 0.8)"), both)
    one = paint("a cat", lora={"ink": 0.8})
    assert np.array_equal(paint("<lora:ink:0.8>a cat", lora={}), one)
    assert np.array_equal(paint(["<lora:ink:0.8>a cat"], lora={"ink": 0.1}), one)
    assert np.array_equal(paint("a <lora:v1.5-oil:0>cat <lora:ink:0.8>"), paint("a cat ", lora={"ink": 0.8}))
    with pytest.raises(ValueError, match="'oil', which is not loaded; there are: ink, v1"):
        paint("<lora:oil:1> a cat")
    with pytest.raises(ValueError, match="there are: none"):
        images(fresh(twins)[0], "<lora:ink:1> a cat", num_inference_steps=1)
    picture = pipe("<lora:ink:0.8>a cat", num_inference_steps=1, seed=1).images[0]
    assert picture.settings["prompt"] == "<lora:ink:0.8>a cat"
