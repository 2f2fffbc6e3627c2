"""The sizes of a Wan transformer: tokens of a grid of patches, heads, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..checks import as_real, as_triple, as_whole
from ..tiles import Triple

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
    more memory (`python -m docs.make.residual`). A larger model keeps too much: of 14B at 720p 63 GB in place of 31.
    """
    return "fp32" if config.dim <= WAN_1_3B.dim else "compute"
