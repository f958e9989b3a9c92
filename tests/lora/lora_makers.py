"""Pairs of tiny pipelines that may be changed, and LoRAs for them: made by PEFT, or random under any file's names."""

from __future__ import annotations

import copy

import torch

import langevin

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYTHING = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj")
"""Layers of UNets, those that LoCon files change among them."""
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


def fresh(twins, unet="sd1", **parts):
    """Our pipeline and the reference's on the same weights, with networks of their own."""
    pipes = twins(unet=unet, **parts)
    made = []
    for pipe in pipes:
        own = {name: copy.deepcopy(getattr(pipe, name)) for name in ("unet", "text_encoder", "vae")}
        new = type(pipe)(**{**pipe.components, **own}, requires_safety_checker=False)
        new.set_progress_bar_config(disable=True)
        made.append(new)
    return tuple(made)


def peft_lora(
    theirs, folder, *, kept=None, seed=0, unet=ATTENTION, text=TEXT, metadata=True, form="diffusers", **config
):
    """A folder with a random LoRA, made by PEFT and saved by the reference. ``kept`` gets the networks of PEFT."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    saved = {}
    for part, targets in (("unet", unet), ("text_encoder", text)):
        if not targets:
            continue
        network = copy.deepcopy(getattr(theirs, part))
        chosen = LoraConfig(
            **{"r": 4, "lora_alpha": 4, "init_lora_weights": False, **config}, target_modules=list(targets)
        )
        network.add_adapter(chosen, "x")
        if kept is not None:
            kept[part] = network
        state = get_peft_model_state_dict(network, adapter_name="x")
        saved[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(state) if form == "diffusers" else state
        if metadata:
            saved[f"{part}_lora_adapter_metadata"] = chosen.to_dict()
    type(theirs).save_lora_weights(folder, **saved)
    return folder


def random_lora(network, targets=ATTENTION, rank=3, seed=0, size=0.3):
    """{layer: (down, up)} with random values, convolutions as LoCon has them."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "weight") and any(name == t or name.endswith("." + t) for t in targets):
            outside, *inside = layer.weight.shape
            down = torch.randn(rank, *inside, generator=generator) * size
            made[name] = down, torch.randn(outside, rank, *[1] * (len(inside) - 1), generator=generator) * size
    return made


def predicted(unet, seed=0):
    """A UNet's prediction for random inputs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(x, 300, text).sample


def read_text(text_encoder):
    with torch.no_grad():
        return text_encoder(torch.arange(3, 35).reshape(2, 16)).last_hidden_state


def painter(shapes="langevin/shapes"):
    pipe = langevin.DiffusionPipeline.from_pretrained(shapes)
    pipe.set_progress_bar_config(disable=True)
    return pipe
