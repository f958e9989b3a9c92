"""What pipelines return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from langevin.outputs import BaseOutput


@dataclass
class ImagePipelineOutput(BaseOutput):
    """Pictures.

    Attributes:
        images: a list of PIL pictures; for ``output_type="np"`` an array ``(batch, height, width, channels)``, for
            ``"pt"`` a tensor ``(batch, channels, height, width)``, both in [0, 1].
    """

    images: Any
