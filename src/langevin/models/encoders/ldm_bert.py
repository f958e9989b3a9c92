"""The text encoder of latent diffusion's text-to-image model: Rombach, Blattmann, Lorenz, Esser & Ommer 2022
(2112.10752), section 4.3.1: a transformer over BERT's tokens, trained together with the denoiser.

Imported only when a checkpoint has one, since it is built on transformers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput


class LDMBertConfig(PretrainedConfig):
    """Sizes of an :class:`LDMBertModel`, under the names in checkpoints.

    Args:
        encoder_layers, encoder_attention_heads, head_dim: attention is ``heads · head_dim`` wide, which need not be
            ``d_model``.
        d_model, encoder_ffn_dim: width of the tokens, and inside the feed-forward layers.
        dropout, attention_dropout, activation_dropout: in training, of what each sublayer adds, of attention's shares,
            and inside the feed-forward layers.
        init_std: of the weights at the start of training.
        encoder_layerdrop, classifier_dropout, scale_embedding, use_cache: kept for checkpoints that name them; they
            change nothing.
    """

    model_type = "ldmbert"
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "encoder_attention_heads",
        "hidden_size": "d_model",
    }

    def __init__(
        self,
        vocab_size: int = 30522,
        max_position_embeddings: int = 77,
        encoder_layers: int = 32,
        encoder_ffn_dim: int = 5120,
        encoder_attention_heads: int = 8,
        head_dim: int = 64,
        encoder_layerdrop: float = 0.0,
        activation_function: str = "gelu",
        d_model: int = 1280,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
        classifier_dropout: float = 0.0,
        scale_embedding: bool = False,
        use_cache: bool = True,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.max_position_embeddings = vocab_size, max_position_embeddings
        self.d_model, self.encoder_ffn_dim = d_model, encoder_ffn_dim
        self.encoder_layers, self.num_hidden_layers = encoder_layers, encoder_layers
        self.encoder_attention_heads, self.head_dim = encoder_attention_heads, head_dim
        self.activation_function, self.init_std = activation_function, init_std
        self.dropout, self.attention_dropout, self.activation_dropout = dropout, attention_dropout, activation_dropout
        self.encoder_layerdrop, self.classifier_dropout = encoder_layerdrop, classifier_dropout
        self.scale_embedding, self.use_cache = scale_embedding, use_cache
        super().__init__(**{**kwargs, "pad_token_id": pad_token_id, "num_hidden_layers": encoder_layers})


class _Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        inner = config.encoder_attention_heads * config.head_dim
        self.heads, self.dropout = config.encoder_attention_heads, config.attention_dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(inner, config.d_model)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropped = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropped)
        return self.out_proj(seen.transpose(1, 2).flatten(2))

    def shares(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Who looks at whom, ``(rows, heads, tokens, tokens)``."""
        q, k = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if bias is None else scores + bias).softmax(-1)


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.activation = ACT2FN[config.activation_function]
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x + F.dropout(self.self_attn(self.self_attn_layer_norm(x), bias), self.dropout, self.training)
        inside = self.activation(self.fc1(self.final_layer_norm(x)))
        inside = self.fc2(F.dropout(inside, self.activation_dropout, self.training))
        return x + F.dropout(inside, self.dropout, self.training)


class _Encoder(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)


class LDMBertModel(PreTrainedModel):
    """Texts to ``last_hidden_state``, ``(rows, tokens, d_model)``: layers that norm before they attend, and a norm.

    ``to_logits`` is in the checkpoints and is not used.
    """

    config_class = LDMBertConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["_Layer"]
    library_name = "latent_diffusion"

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__(config)
        self.model = _Encoder(config)
        self.to_logits = nn.Linear(config.d_model, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value  # type: ignore[assignment]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """Read tokens.

        Args:
            input_ids: ``(rows, tokens)``; or ``inputs_embeds``, ``(rows, tokens, d_model)``.
            attention_mask: ``(rows, tokens)``, 0 where no token looks.
            position_ids: ``(rows, tokens)`` or ``(1, tokens)``; 0, 1, … if None.

        Returns:
            ``last_hidden_state``; ``hidden_states`` before each layer and, normed, behind the last; ``attentions`` of
            each layer, ``(rows, heads, tokens, tokens)``; those that are asked for.

        Raises:
            ValueError: neither ids nor embeddings, or both, or more tokens than there are positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        model = self.model
        x = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            if x.shape[1] > self.config.max_position_embeddings:
                most = self.config.max_position_embeddings
                raise ValueError(f"{x.shape[1]} tokens given; this encoder has positions for {most}")
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        x = F.dropout(x + model.embed_positions(position_ids), self.config.dropout, self.training)
        bias = None
        if attention_mask is not None:
            hidden = attention_mask[:, None, None] == 0
            bias = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(
                hidden, torch.finfo(x.dtype).min
            )
        states, attentions = [], []
        for layer in model.layers:
            states.append(x)
            if output_attentions:
                attentions.append(layer.self_attn.shares(layer.self_attn_layer_norm(x), bias))
            x = layer(x, bias)
        x = model.layer_norm(x)
        output = BaseModelOutput(
            last_hidden_state=x,  # type: ignore[arg-type]
            hidden_states=(*states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()
