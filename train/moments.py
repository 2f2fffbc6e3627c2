"""Principal components of boxes of pixels, from sums over clips in double precision."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10, prod
from typing import TYPE_CHECKING

import torch
from einops import rearrange

from fps_flex.checks import Triple
from fps_flex.wan.linear_codec import Components

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PEAK = 2.0  # of pixels in -1 to 1
LEAST = 1e-4  # of a channel's deviation, below which its scale would blow up rounding


@dataclass
class Moments:
    """Of so many boxes: their number, sum, and sum of outer products."""

    box: Triple
    count: int
    total: Float[Tensor, " n"]
    products: Float[Tensor, "n n"]

    @classmethod
    def of_none(cls, box: Triple) -> Moments:
        n = 3 * prod(box)
        return cls(box, 0, torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64))

    def add(self, video: Float[Tensor, "3 f h w"]) -> None:
        p, q, r = self.box
        boxes = rearrange(video.double(), "c (f p) (h q) (w r) -> (f h w) (c p q r)", p=p, q=q, r=r)
        self.count += len(boxes)
        self.total += boxes.sum(0)
        self.products += boxes.T @ boxes

    @property
    def mean(self) -> Float[Tensor, " n"]:
        return self.total / self.count

    def spread(self, center: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        """Mean outer product of boxes less the center: their covariance where that is the mean."""
        cross = torch.outer(self.mean, center)
        return self.products / self.count - cross - cross.T + torch.outer(center, center)


def find_axes(moments: Moments) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Variances, the largest first, and in rows the directions, of which the largest entry is positive."""
    variances, columns = torch.linalg.eigh(moments.spread(moments.mean))
    axes = columns.T.flip(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return variances.flip(0).clamp(min=0), axes * largest.sign()


def find_components(moments: Moments, channels: int, box: Triple, scaling: str) -> Components:
    """scaling: unit makes each channel's variance one; one divides all by the same, so that it is one on average."""
    variances, axes = find_axes(moments)
    kept = variances[:channels]
    kept = kept if scaling == "unit" else kept.mean().expand(channels)
    scale = kept.sqrt().clamp(min=LEAST)
    return Components(box, axes[:channels].float().contiguous(), moments.mean.float(), scale.float().contiguous())


def psnr_by_channels(fitted: Moments, measured: Moments) -> list[float]:
    """In dB, of the `measured` boxes from 1, 2, ... components of the `fitted` ones."""
    _, axes = find_axes(fitted)
    spread = measured.spread(fitted.mean)
    caught = torch.einsum("kn,nm,km->k", axes, spread, axes).cumsum(0)
    lost = ((spread.trace() - caught) / len(axes)).clamp(min=0).tolist()
    return [10 * log10(PEAK**2 / error) if error > 1e-12 else inf for error in lost]
