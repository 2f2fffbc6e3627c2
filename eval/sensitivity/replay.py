"""Attention chosen layer by layer, without the model's knowing; and candidates replayed on a layer's q, k and v."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fps_flex import FPSAttention, Plan
from fps_flex.tiles import Triple
from fps_flex.wan.sequence import Attend, Call

from .errors import compare_heads

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class ByLayer:
    """Takes the place of `Wan.sequence`: each layer's attention is attend_of(layer), over the same slots."""

    attend_of: Callable[[int], Attend]

    def share(self, call: Call) -> ByLayer:
        return self

    def attend(self, layer: int) -> Attend:
        return self.attend_of(layer)

    def split(self, x: Float[Tensor, "..."], dim: int = 1) -> Float[Tensor, "..."]:
        return x

    def gather(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b slots d"]:
        return x


@dataclass(frozen=True)
class Planned:
    """An attention and its plan on one grid; of one regime alone, so that the plan holds at every noise level."""

    attention: FPSAttention
    plan: Plan

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v, self.plan)


def plan_attention(attention: FPSAttention, grid: Triple, device: torch.device) -> Planned:
    return Planned(attention, attention.plan(grid, torch.ones(1, device=device)))


class Replay:
    """Dense attention, and after it every candidate on the same q, k, v of the same layer, one at a time.

    errors: of each layer met so far [candidates, heads, 2], as `compare` has them, on the CPU.
    """

    def __init__(self, dense: Planned, candidates: list[Planned]) -> None:
        self.dense, self.candidates = dense, candidates
        self.errors: list[Float[Tensor, "c h 2"]] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        exact, layout = self.dense(q, k, v), self.dense.plan.layout
        self.errors.append(torch.stack([compare_heads(one(q, k, v), exact, layout) for one in self.candidates]).cpu())
        return exact


def everywhere(attend: Attend) -> ByLayer:
    return ByLayer(lambda layer: attend)


def in_one_layer(layer: int, attend: Attend, elsewhere: Attend) -> ByLayer:
    return ByLayer(lambda i: attend if i == layer else elsewhere)
