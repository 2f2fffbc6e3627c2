"""Layers that don't compute in the dtype of autocast or their weights: norms in fp32, the head in its input's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class InputDtypeLinear(nn.Linear):
    """Computes in x's dtype, whatever the weights are in and autocast says."""

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s p"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, self.weight.type_as(x), self.bias.type_as(x))


class LayerNorm(nn.LayerNorm):
    """In and out in fp32, whatever x is."""

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return super().forward(x.float())


class RMSNorm(nn.RMSNorm):
    """Computes in fp32, returns x's dtype."""

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return super().forward(x.float()).type_as(x)
