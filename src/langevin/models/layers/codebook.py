"""Vector quantisation: van den Oord, Vinyals & Kavukcuoglu 2017, "Neural Discrete Representation Learning"
(1711.00937).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Codebook(nn.Module):
    """Vectors, of which the nearest takes the place of another vector.

    Args:
        count: how many there are.
        dim: their width.
        beta: weight of one of the loss's halves; see :meth:`forward`.
    """

    def __init__(self, count: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(count, dim)
        nn.init.uniform_(self.embedding.weight, -1 / count, 1 / count)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Quantise a map, ``(batch, dim, height, width)``.

        Returns:
            The nearest vectors, as a map. Gradients pass by them, as if nothing had been done (equation 3's straight
            line); the loss, a number, that draws the map to its vectors with weight 1 and the vectors to the map with
            ``beta`` (published autoencoders were trained so, though equation 3 has it the other way round); and a
            triple, of which the last are the vectors' numbers, ``(batch · height · width,)``.
        """
        rows = z.permute(0, 2, 3, 1)
        # asked for, not read, since an offloaded table comes when it is asked
        table = self.embedding(torch.arange(self.embedding.num_embeddings, device=z.device))
        distances = torch.cdist(rows.reshape(-1, table.shape[1]).float(), table.float())
        numbers = distances.argmin(dim=1)
        nearest = self.embedding(numbers).view(rows.shape)
        loss = ((nearest.detach() - rows) ** 2).mean() + self.beta * ((nearest - rows.detach()) ** 2).mean()
        nearest = rows + (nearest - rows).detach()
        return nearest.permute(0, 3, 1, 2).contiguous(), loss, (None, None, numbers)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The vectors of these numbers.

        Args:
            indices: whole numbers, of any shape.
            shape: ``(batch, height, width, dim)``, to get a map; else each number gets its vector, as they stand.

        Returns:
            ``(batch, dim, height, width)``, or ``(*indices, dim)``.

        Raises:
            ValueError: a number is not one of the book, or there are others than ``shape`` has places for.
        """
        count, dim = self.embedding.num_embeddings, self.embedding.embedding_dim
        if indices.is_floating_point():
            raise ValueError(f"codes are {indices.dtype}; whole numbers from 0 to {count - 1} are needed")
        if indices.numel() and not indices.is_meta:
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= count:
                raise ValueError(f"codes go from {low} to {high}; this book has 0 to {count - 1}")
        if shape is None:
            return self.embedding(indices)
        places = list(shape)[:3]
        if tuple(shape)[3:] != (dim,) or indices.numel() != places[0] * places[1] * places[2]:
            raise ValueError(
                f"shape is {tuple(shape)} for {indices.numel()} codes of width {dim}; (batch, height, width, {dim})"
            )
        return self.embedding(indices.reshape(places)).permute(0, 3, 1, 2).contiguous()
