"""The autoencoder whose latents are words of a codebook (Esser, Rombach & Ommer, 2021, 2012.09841)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from langevin.checkpoints.config import register_to_config
from langevin.models.base import ModelMixin
from langevin.models.layers.attention import Attend
from langevin.models.layers.codebook import Codebook
from langevin.models.layers.coder import Decoder, Encoder
from langevin.models.layers.conditioning import check_sample
from langevin.models.layers.kinds import Options, check_stages
from langevin.models.layers.legacy import rename_old_attention
from langevin.outputs import DecoderOutput, VQEncoderOutput


class VQModel(ModelMixin):
    """A vector-quantised autoencoder for pictures.

    Args:
        in_channels, out_channels: of the pictures.
        down_block_types, up_block_types, block_out_channels, layers_per_block: the stages.
        latent_channels: of the maps between encoder and decoder.
        sample_size: height and width that it was made for; a note.
        num_vq_embeddings, vq_embed_dim: how many vectors the codebook has, and their width (``latent_channels`` if
            None), which is that of the latents.
        scaling_factor: pipelines that denoise its latents use z = latents * scaling_factor, those that were made so.
        norm_type: ``group``, or ``spatial``: the decoder's norms are told the quantised map (MoVQ: Zheng et al., 2022,
            2209.09002).
        mid_block_add_attention: attention in the middle.
        lookup_from_codebook: :meth:`decode` may be given the numbers of vectors; see there.
        force_upcast: the weights overflow float16; a note.

    Raises:
        ValueError: for another ``norm_type``, or stages that do not fit together.

    Example:
        >>> from langevin import VQModel
        >>> vqvae = VQModel.from_pretrained("CompVis/ldm-celebahq-256", subfolder="vqvae")
        >>> pictures = vqvae.decode(vqvae.encode(pictures).latents).sample
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        channels, dim = tuple(block_out_channels), vq_embed_dim or latent_channels
        check_stages(down_block_types=down_block_types, up_block_types=up_block_types, block_out_channels=channels)
        if norm_type not in ("group", "spatial"):
            raise ValueError(f"norm_type is {norm_type!r}; it must be 'group' or 'spatial'")
        options = Options(eps=1e-6, act=act_fn, groups=norm_num_groups, padding=0)
        norms = replace(options, embedding_use="spatial", embedding_dim=dim) if norm_type == "spatial" else options
        sizes = channels, layers_per_block
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, *sizes, options, mid_block_add_attention)
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.quantize = Codebook(num_vq_embeddings, dim)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.decoder = Decoder(
            latent_channels,
            out_channels,
            up_block_types,
            *sizes,
            norms,
            mid_block_add_attention,
        )

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the names that old files use, under the present ones."""
        return rename_old_attention(state_dict)

    def encode(
        self, x: Tensor, return_dict: bool = True, *, attention: Attend | None = None
    ) -> VQEncoderOutput | tuple[Tensor]:
        """Pictures (batch, in_channels, height, width) in [-1, 1] -> latents (batch, vq_embed_dim, …), not yet
        quantised.
        """
        check_sample(x, self.config["in_channels"])
        latents = self.quant_conv(self.encoder(x, attention))
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
        *,
        attention: Attend | None = None,
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """Latents to pictures.

        Args:
            h: (batch, vq_embed_dim, height, width), brought to the nearest vectors of the codebook. Where the network
                has ``lookup_from_codebook`` and nothing is to be quantised: numbers of vectors, (batch, height, width),
                or in any form with ``shape``.
            force_not_quantize: take latents as they are.
            shape: (batch, height, width, vq_embed_dim), of numbers in another form.

        Returns:
            ``sample``, pictures (batch, out_channels, …) in about [-1, 1], and ``commit_loss``, what training adds for
            quantising (a number; zeros, one per picture, where nothing was quantised).

        Raises:
            ValueError: for latents of another form, or numbers that the codebook has not.
        """
        dim = self.quantize.embedding.embedding_dim
        if force_not_quantize and self.config["lookup_from_codebook"]:
            if shape is None and h.ndim == 3:
                shape = (*h.shape, dim)
            elif shape is None:
                raise ValueError(f"codes are {tuple(h.shape)}; (batch, height, width) is needed, or a shape")
            quantised = self.quantize.get_codebook_entry(h, shape)
            loss = quantised.new_zeros(len(quantised))
        elif force_not_quantize:
            check_sample(h, dim)
            quantised, loss = h, h.new_zeros(len(h))
        else:
            check_sample(h, dim)
            quantised, loss, _ = self.quantize(h)
        told = quantised if self.config["norm_type"] == "spatial" else None
        pictures = self.decoder(self.post_quant_conv(quantised), attention, told)
        return DecoderOutput(sample=pictures, commit_loss=loss) if return_dict else (pictures, loss)

    def forward(
        self, sample: Tensor, return_dict: bool = True, *, attention: Attend | None = None
    ) -> DecoderOutput | tuple[Tensor, Tensor]:
        """There and back: pictures -> quantised latents -> pictures, and the loss of quantising."""
        return self.decode(
            self.encode(sample, return_dict=False, attention=attention)[0], return_dict=return_dict, attention=attention
        )
