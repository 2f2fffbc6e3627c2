"""Codecs between what people see and read and what the model works on: pixels <-> latents, prompts -> text states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

Triple = tuple[int, int, int]


class Codec(nn.Module, ABC):
    """Pixels in -1 to 1 <-> latents of about unit scale. channels: of the latents."""

    channels: int

    @abstractmethod
    def latent_size(self, size: Triple) -> Triple:
        """Frames, rows and columns of the latents of a video of that size. Raises ValueError if it doesn't divide."""

    @abstractmethod
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]: ...

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]: ...


class PixelCodec(Codec):
    """Space to depth: each latent holds a box of pixels, and nothing is lost.

    stride: frames, rows and columns of the box. Raises ValueError for a stride below 1.
    """

    def __init__(self, stride: Triple = (2, 2, 2)) -> None:
        super().__init__()
        if len(stride) != 3 or min(stride) < 1:
            raise ValueError(f"the pixel codec's stride is {stride}, expected frames, rows, columns of at least 1")
        self.stride, self.channels = tuple(stride), 3 * prod(stride)

    def latent_size(self, size: Triple) -> Triple:
        if any(length % s for length, s in zip(size, self.stride, strict=True)):
            raise ValueError(f"clips of {size} (frames, rows, columns) don't divide into boxes of {self.stride} pixels")
        frames, rows, columns = (length // s for length, s in zip(size, self.stride, strict=True))
        return frames, rows, columns

    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]:
        p, q, r = self.stride
        return rearrange(video, "b c (f p) (h q) (w r) -> b (c p q r) f h w", p=p, q=q, r=r)

    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]:
        p, q, r = self.stride
        return rearrange(latents, "b (c p q r) f h w -> b c (f p) (h q) (w r)", p=p, q=q, r=r)


class TextEncoder(nn.Module, ABC):
    """Prompts -> text states. dim: of one state."""

    dim: int

    @abstractmethod
    def forward(self, prompts: list[str]) -> Float[Tensor, "b l e"]:
        """States of each prompt, padded with zeros to a fixed length."""


class ByteText(TextEncoder):
    """A fixed random vector for each byte and one for its place in the prompt; nothing is learned.

    length: bytes kept of a prompt.
    """

    def __init__(self, dim: int = 32, length: int = 64) -> None:
        super().__init__()
        self.dim = dim
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("bytes", torch.randn(256, dim, generator=generator), persistent=False)
        self.register_buffer("places", torch.randn(length, dim, generator=generator), persistent=False)

    def forward(self, prompts: list[str]) -> Float[Tensor, "b l e"]:
        states = self.places.new_zeros(len(prompts), *self.places.shape)
        for row, prompt in zip(states, prompts, strict=True):
            codes = list(prompt.encode()[: len(row)])
            row[: len(codes)] = self.bytes[codes] + self.places[: len(codes)]
        return states
