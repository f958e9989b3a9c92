"""The text encoder of AltDiffusion: XLM-R taught to speak as CLIP does, so that one network reads many languages. Chen,
Liu, Zhang, Ye, Yang & Wu 2022, "AltCLIP" (2211.06679).

Imported only when a checkpoint has one, since it is built on transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, XLMRobertaConfig, XLMRobertaModel
from transformers.utils import ModelOutput

from langevin.models.encoders.twin import Watched, twin


class RobertaSeriesConfig(XLMRobertaConfig):
    """XLM-R's settings, and those of what turns its tokens into CLIP's.

    Args:
        project_dim: width of CLIP's tokens.
        use_attention_mask: hide padding from attention.
        has_pre_transformation: read the tokens before XLM-R's last layer, as AltDiffusion's second model (18 languages)
            does; given by keyword.
        pooler_fn, learn_encoder: kept for checkpoints that name them; they change nothing.
    """

    def __init__(
        self,
        pad_token_id: int = 1,
        bos_token_id: int = 0,
        eos_token_id: int = 2,
        project_dim: int = 512,
        pooler_fn: str = "cls",
        learn_encoder: bool = False,
        use_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
        self.project_dim, self.use_attention_mask = project_dim, use_attention_mask
        self.pooler_fn, self.learn_encoder = pooler_fn, learn_encoder


@dataclass
class TransformationModelOutput(ModelOutput):
    """``projection_state``, ``(rows, tokens, project_dim)``, is what the denoiser is told; the rest is XLM-R's."""

    projection_state: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RobertaSeriesModelWithTransformation(PreTrainedModel):
    """XLM-R, and a linear layer from its tokens to CLIP's."""

    config_class = RobertaSeriesConfig
    base_model_prefix = "roberta"
    main_input_name = "input_ids"
    _no_split_modules = ["XLMRobertaLayer", "XLMRobertaEmbeddings"]
    _keys_to_ignore_on_load_unexpected = ["pooler", "logit_scale"]
    _keys_to_ignore_on_load_missing = ["pooler", "position_ids"]
    library_name = "alt_diffusion"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.roberta = XLMRobertaModel(config)
        self.transformation = nn.Linear(config.hidden_size, config.project_dim)
        self.has_pre_transformation = bool(getattr(config, "has_pre_transformation", False))
        if self.has_pre_transformation:
            self.transformation_pre = nn.Linear(config.hidden_size, config.project_dim)
            self.pre_LN = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        """Read tokens.

        Args:
            input_ids: ``(rows, tokens)``.
            attention_mask: ``(rows, tokens)``, 0 where no token looks.
            more: other arguments of transformers' ``XLMRobertaModel``, as ``inputs_embeds`` or
                ``output_hidden_states``.

        Returns:
            A :class:`TransformationModelOutput`, or its entries as a tuple.

        Raises:
            ValueError: tokens before the last layer are wanted, and all layers were left out.
        """
        if not self.has_pre_transformation:
            given = self.roberta(input_ids, attention_mask=attention_mask, return_dict=True, **more)
            projected = self.transformation(given.last_hidden_state)
        else:
            given, state = self._watched(input_ids, attention_mask=attention_mask, **more)
            projected = self.transformation_pre(self.pre_LN(state))
        output = TransformationModelOutput(
            projection_state=projected,
            last_hidden_state=given.last_hidden_state,
            hidden_states=given.hidden_states,
            attentions=given.attentions,
        )
        return output if return_dict else output.to_tuple()

    def _watched(self, *args: Any, **more: Any) -> tuple[Any, Tensor]:
        """What XLM-R gives, and its tokens before the last layer."""
        layers = list(self.roberta.encoder.layer)
        if not layers:
            raise ValueError("this encoder reads the tokens before its last layer; leave at least one layer in")
        if any(more.get(name) for name in ("output_hidden_states", "output_attentions")):
            given = self.roberta(*args, return_dict=True, **{**more, "output_hidden_states": True})
            return given, given.hidden_states[-2]
        # asking for the states puts hooks into the model that stay there, so without need nobody asks
        last = Watched(layers[-1])
        roberta = twin(self.roberta, {"encoder.layer": nn.ModuleList([*layers[:-1], last])})
        return roberta(*args, return_dict=True, **more), last.given
