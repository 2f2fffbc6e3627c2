"""The Wan2.1 text-to-video transformer, with tokens in tile order from the first block to the last.

Modules are named as in the official checkpoints. Modulation, norms and the time embedding compute in fp32; so do the
residual stream and the head where `residual` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from ..attention import FPSAttention
from ..checks import as_real, as_triple, as_whole
from ..compile import compiled
from ..tiles import Triple
from .rope import Rope, ordered_rope, rotate
from .sequence import Attend, Call, Sequence, Whole

if TYPE_CHECKING:
    from jaxtyping import Float

Residual = Literal["compute", "fp32"]


@dataclass(frozen=True)
class WanConfig:
    """The sizes of a Wan transformer.

    Args:
        dim: channels of a token; the heads share them.
        ffn_dim: channels inside a block's feed-forward network.
        heads: of attention.
        layers: blocks.
        channels: of the latents; those of the codec.
        text_dim: channels of a text state; those of the text encoder.
        freq_dim: channels of the sinusoids that a noise level is embedded by, an even number.
        patch: latent frames, rows and columns of a token.
        eps: of the norms.

    Raises ValueError for a size below 1, and when the heads don't divide dim or are too narrow for RoPE.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch: Triple = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", as_triple("patch", self.patch))
        for name in ("dim", "ffn_dim", "heads", "layers", "channels", "text_dim", "freq_dim"):
            object.__setattr__(self, name, as_whole(name, getattr(self, name)))
        object.__setattr__(self, "eps", as_real("eps", self.eps))
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim is {self.freq_dim}, expected an even number: a cosine and a sine each")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps is {self.eps}, expected a number above 0 and below 1")
        if self.dim % self.heads or self.head_dim % 2 or self.head_dim < 6:
            raise ValueError(f"dim {self.dim} over {self.heads} heads, expected an even head size of at least 6")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def grid(self, latents: tuple[int, int, int]) -> Triple:
        """Tokens on (T, H, W) of latents of so many frames, rows and columns. Raises ValueError if a patch is cut."""
        if any(size % p for size, p in zip(latents, self.patch, strict=True)):
            raise ValueError(f"latents of {latents} (frames, rows, columns) don't divide into patches of {self.patch}")
        t, h, w = (size // p for size, p in zip(latents, self.patch, strict=True))
        return t, h, w


WAN_TINY = WanConfig(dim=128, ffn_dim=384, heads=2, layers=3, channels=24, text_dim=32, freq_dim=64)
WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, heads=12, layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, heads=40, layers=40)


def default_residual(config: WanConfig) -> Residual:
    """The residual stream that a model of these sizes gets where none is chosen: fp32 up to that of 1.3B.

    In fp32, bf16 training of 1.3B is off by 0.35 %, and by 1.1 % otherwise; a step takes a tenth longer and a tenth
    more memory (`python -m eval.bench residual`). A larger model keeps too much: of 14B at 720p 63 GB in place of 31.
    """
    return "fp32" if config.dim <= WAN_1_3B.dim else "compute"


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
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source)
        q, k, v = (rearrange(y, "b s (h d) -> b s h d", h=self.heads) for y in (q, k, v))
        return q, k, v

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
