"""Tiny tokenizers and random encoders of every kind that a reader knows."""

from __future__ import annotations

import string

import torch
import transformers

import langevin

LETTERS = string.ascii_letters + string.digits + ".,:;!?-+()[]|~'\"éß猫"


def random(model):
    """With weights that matter; those of a new model are nearly 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise if parameter.ndim > 1 else parameter.data + 0.1 * noise
    return model.eval()


def _pieces(special):
    scores = [(word, 0.0) for word in special] + [("▁", -1.0)]
    return scores + [(prefix + letter, -2.0) for letter in LETTERS for prefix in ("▁", "")]


def t5_tokenizer():
    return transformers.T5Tokenizer(vocab=_pieces(["<pad>", "</s>", "<unk>"]), extra_ids=0, model_max_length=512)


def t5_encoder(**config):
    sizes = dict(vocab_size=220, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    return random(transformers.T5EncoderModel(transformers.T5Config(**{**sizes, **config})))


def xlm_r_tokenizer(window=24):
    vocab = [*_pieces(["<s>", "<pad>", "</s>", "<unk>"]), ("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=vocab, model_max_length=window)


def xlm_r_sizes(**config):
    sizes = dict(vocab_size=220, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4)
    return {**sizes, "project_dim": 12, "max_position_embeddings": 40, **config}


def bert_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
    return transformers.BertTokenizer(vocab={w: k for k, w in enumerate(words)}, model_max_length=77)


def bert_sizes(**config):
    sizes = dict(vocab_size=220, encoder_layers=3, encoder_ffn_dim=32, encoder_attention_heads=4, head_dim=5)
    return {**sizes, "d_model": 24, **config}


def clip_encoder(tokenizer, projection=0, **config):
    """CLIP's text model, or with a ``projection`` that model."""
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    more = {"projection_dim": projection} if projection else {}
    return random(kind(transformers.CLIPTextConfig(**{**sizes, **more, **config})))


def clip_vision(**config):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, projection_dim=8)
    sizes = {**sizes, "image_size": 32, "patch_size": 8, **config}
    encoder = random(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**sizes)))
    side = sizes["image_size"]
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return encoder, transformers.CLIPImageProcessor(**size)


def xlm_r(config=None):
    sizes = langevin.RobertaSeriesConfig(**xlm_r_sizes(**(config or {})))
    return random(langevin.RobertaSeriesModelWithTransformation(sizes))


def bert(config=None):
    return random(langevin.LDMBertModel(langevin.LDMBertConfig(**bert_sizes(**(config or {})))))
