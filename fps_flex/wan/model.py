"""The Wan2.1 text-to-video transformer, with tokens in tile order from the first block to the last.

Modules are named as in the official checkpoints. Modulation, norms and the time embedding compute in fp32; so do the
residual stream and the head where `residual` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from ..attention import FPSAttention
from ..compile import compiled
from ..tiles import Triple
from .config import Residual, WanConfig, default_residual
from .precise import InputDtypeLinear, LayerNorm, RMSNorm
from .rope import Rope, ordered_rope, rotate
from .sequence import Attend, Call, Sequence, Whole

if TYPE_CHECKING:
    from jaxtyping import Float


class Wan(nn.Module):
    """The velocity of rectified flow.

    checkpointing: blocks recompute their activations in the backward. offload: what a block of them starts from waits
    in the host's memory meanwhile. compiled: blocks run through torch.compile, one
    graph for all of them; made for GPUs. residual: the dtype of what runs from block to block, and of the head:
    "compute", that in which the linear layers compute (autocast's or their weights'), or "fp32" as in the official
    model, which rounds less and keeps twice the bytes per block; None takes `default_residual`.
    The attribute `sequence` says how processes share a video's tokens (sequence.py); at first they don't.

    Raises ValueError for an unknown residual, and for an attention that says something of layers that aren't there, or
    can't have heads of this size.
    """

    def __init__(
        self,
        config: WanConfig,
        attention: FPSAttention,
        checkpointing: bool = False,
        compiled: bool = False,
        residual: Residual | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__()
        attention.check_model(config.layers, config.head_dim)
        self.config, self.attention = config, attention
        self.checkpointing, self.compiled, self.residual = checkpointing, compiled, residual
        self.offload = offload
        self.sequence: Sequence = Whole()
        c = config
        self.patch_embedding = nn.Conv3d(c.channels, c.dim, c.patch, c.patch)
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, c.dim), nn.GELU("tanh"), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head = Head(c)
        self._initialize()

    @property
    def residual(self) -> Residual:
        return self._residual

    @residual.setter
    def residual(self, residual: Residual | None) -> None:
        residual = residual or default_residual(self.config)
        if residual not in get_args(Residual):
            raise ValueError(f"residual is {residual!r}, expected one of {', '.join(get_args(Residual))}")
        self._residual = residual

    def forward(
        self, latents: Float[Tensor, "b c f h w"], timestep: Float[Tensor, " b"], text: Float[Tensor, "b l e"]
    ) -> Float[Tensor, "b c f h w"]:
        """timestep: 1000 sigma, in 0 to 1000, on the latents' device or the CPU. text: states of the text encoder,
        padded with zeros.

        Computes in the dtype of the patch embedding's weights, or autocast's; returns in the residual stream's.
        Raises ValueError when the latents don't divide into patches or the tile doesn't fit their grid, and as
        `sequence` does.
        """
        _, _, frames, rows, columns = latents.shape
        grid = self.config.grid((frames, rows, columns))
        sigma, timestep = timestep / 1000, timestep.to(latents.device, non_blocking=True)
        plan = self.attention.plan(grid, sigma.to(latents.device, non_blocking=True))
        dtype = self.patch_embedding.weight.dtype
        time, modulation = self._embed_time(timestep)
        text = self.text_embedding(text.to(dtype))
        share = self.sequence.share(
            Call(self.attention, plan, sigma, self.config.heads, self.config.head_dim, text.dtype)
        )
        cos, sin = ordered_rope(plan.layout, self.config.head_dim)
        rope = share.split(cos, 0), share.split(sin, 0)

        x = rearrange(self.patch_embedding(latents.to(dtype)), "b d t h w -> b (t h w) d")
        x = share.split(plan.layout.order(x))
        x = x.float() if self.residual == "fp32" else x
        run = _compiled_run if self.compiled else _run
        for layer, block in enumerate(self.blocks):
            attend = share.attend(layer)
            forward = partial(run, block, modulation=modulation, text=text, rope=rope, attend=attend)
            x = self._recomputed(forward, x) if self.checkpointing and torch.is_grad_enabled() else forward(x)
        return self._unpatchify(plan.layout.unorder(share.gather(self.head(x, time))), grid)

    def _recomputed(self, forward: Callable[[Tensor], Tensor], x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        with save_on_cpu(pin_memory=x.is_cuda) if self.offload else nullcontext():
            return checkpoint(forward, x, use_reentrant=False)

    def _embed_time(self, timestep: Float[Tensor, " b"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 6 d"]]:
        with torch.autocast(timestep.device.type, enabled=False):
            dtype = next(self.time_embedding.parameters()).dtype
            time = self.time_embedding(sinusoids(timestep, self.config.freq_dim).to(dtype))
            return time, rearrange(self.time_projection(time), "b (six d) -> b six d", six=6)

    def _unpatchify(self, x: Float[Tensor, "b n p"], grid: Triple) -> Float[Tensor, "b c f h w"]:
        (t, h, w), (pt, ph, pw) = grid, self.config.patch
        return rearrange(x, "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)

    def _initialize(self) -> None:
        """Xavier for linear layers, N(0, 0.02) for the embeddings of text and time, zero for the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for embedding in (self.text_embedding, self.time_embedding):
            for layer in embedding:
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)


class Block(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = Attention(config)
        self.norm3 = LayerNorm(dim, eps)
        self.cross_attn = Attention(config)
        self.norm2 = LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        modulation: Float[Tensor, "b 6 d"],
        text: Float[Tensor, "b l d"],
        rope: Rope,
        attend: Attend,
    ) -> Float[Tensor, "b s d"]:
        """x: the residual stream, which may be finer than the dtype of text, in which the linear layers compute."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (self.modulation + modulation).chunk(6, dim=1)
        x = add(x, gate_a * self.self_attn(modulate(self.norm1(x), shift_a, scale_a).type_as(text), rope, attend))
        x = x + self.cross_attn.over_text(self.norm3(x).type_as(text), text)
        return add(x, gate_f * self.ffn(modulate(self.norm2(x), shift_f, scale_f).type_as(text)))


def _run(block: nn.Module, x: Tensor, **shared: Any) -> Tensor:
    return block(x, **shared)


_compiled_run = compiled(_run)


class Attention(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(dim, config.eps) for _ in range(2))

    def forward(self, x: Float[Tensor, "b s d"], rope: Rope, attend: Attend) -> Float[Tensor, "b s d"]:
        """Self-attention of the video's tokens, in tile order."""
        q, k, v = self._project(x, x)
        return self._merge(attend(*(y.transpose(1, 2) for y in (rotate(q, rope), rotate(k, rope), v))))

    def over_text(self, x: Float[Tensor, "b s d"], text: Float[Tensor, "b l d"]) -> Float[Tensor, "b s d"]:
        q, k, v = (y.transpose(1, 2) for y in self._project(x, text))
        return self._merge(F.scaled_dot_product_attention(q, k, v))

    def _project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of shape [B, S, H, D] and of one dtype; the norms span all heads."""
        q, k, v = self._apply_linears(x, source)
        q, k, v = (rearrange(y, "b s (h d) -> b s h d", h=self.heads) for y in (self.norm_q(q), self.norm_k(k), v))
        return q, k, v

    def _apply_linears(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(source), self.v(source)

    def _merge(self, x: Float[Tensor, "b h s d"]) -> Float[Tensor, "b s h*d"]:
        return self.o(rearrange(x, "b h s d -> b s (h d)"))


class Head(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        pt, ph, pw = config.patch
        self.norm = LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = InputDtypeLinear(config.dim, pt * ph * pw * config.channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Float[Tensor, "b s d"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b s p"]:
        shift, scale = (self.modulation + time.unsqueeze(1)).chunk(2, dim=1)
        return self.head(modulate(self.norm(x), shift, scale).type_as(x))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def add(x: Tensor, update: Tensor) -> Tensor:
    """The residual sum in fp32, kept in x's dtype."""
    return (x.float() + update).type_as(x)


def sinusoids(timestep: Float[Tensor, " b"], dim: int) -> Float[Tensor, "b d"]:
    """cos and sin of the timestep at dim / 2 frequencies from 1 down to 1 / 10,000, in fp64."""
    half = dim // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
