"""Codecs between what people see and read and what the model works on: pixels <-> latents, prompts -> text states.

They are fixed: neither trained nor part of a checkpoint's weights, which keeps only the options they were made with.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..checks import Triple, as_triple, as_whole, require

if TYPE_CHECKING:
    from jaxtyping import Float

MOST_LENGTH = 2**16  # of a prompt's states, and of one of bytes
LOADED = ("_model", "_tokenizer")  # cached properties of those that load something


def digest(value: Any) -> str:
    """Of plain data, or of a file's bytes."""
    return sha256(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fixed:
    """Options that are plain data; copies of a model share what is loaded by them."""

    kind: ClassVar[str]  # its name in files, which stays when the class moves

    def __deepcopy__(self, memo: dict) -> Fixed:
        return self

    def spec(self) -> dict[str, Any]:
        """As a checkpoint or an index keeps it."""
        return {"kind": self.kind, "options": asdict(self)}

    def fingerprint(self) -> str:
        """What it makes of the same input depends on this alone: digests of its parts, each with its name.

        The same for a copy elsewhere; another where options, or the weights that it loads, differ. Two that differ show
        in which part. Raises ValueError when it is broken.
        """
        return f"settings {digest(self.spec())}"

    def load(self) -> None:
        """Load now what is otherwise loaded when first used. Raises ValueError when it is broken."""
        for name in LOADED:
            getattr(self, name, None)

    def unload(self) -> None:
        """Let go of what was loaded; the next use loads it again."""
        for name in LOADED:
            vars(self).pop(name, None)


class Codec(Fixed, ABC):
    """Pixels in -1 to 1 <-> latents of about unit scale. channels: of the latents."""

    if TYPE_CHECKING:  # a property there would be the default of a dataclass's field of that name

        @property
        @abstractmethod
        def channels(self) -> int: ...

    def identity(self) -> dict[str, str]:
        """What a checkpoint keeps beside `spec`, so that another codec of as many channels isn't taken for this one."""
        return {}

    def check_identity(self, record: dict[str, Any]) -> None:
        """record: a checkpoint's, of its codec. Raises ValueError where this is another one."""
        for name, now in self.identity().items():
            if (before := record.get(name, now)) != now:
                path = self.spec()["options"].get("path")
                raise ValueError(f"it was trained with another {self.kind} codec ({before}) than {path} ({now})")

    @abstractmethod
    def latent_size(self, size: Triple) -> Triple:
        """Frames, rows and columns of the latents of a video of that size. Raises ValueError if it doesn't divide."""

    @abstractmethod
    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]: ...

    @abstractmethod
    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]: ...


def box_grid(size: Triple, box: Triple) -> Triple:
    """How many boxes of pixels a video holds on each axis. Raises ValueError where they don't fill it."""
    if any(length % s or length < s for length, s in zip(size, box, strict=True)):
        raise ValueError(f"clips of {size} (frames, rows, columns) don't divide into boxes of {box} pixels")
    frames, rows, columns = (length // s for length, s in zip(size, box, strict=True))
    return frames, rows, columns


@dataclass(frozen=True)
class PixelCodec(Codec):
    """Space to depth: each latent holds a box of pixels, and nothing is lost.

    Args:
        stride: frames, rows and columns of the box.

    Raises ValueError for a stride that isn't three whole numbers from 1 up.
    """

    kind: ClassVar[str] = "pixels"

    stride: Triple = (2, 2, 2)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stride", as_triple("the pixel codec's stride", self.stride))

    @property
    def channels(self) -> int:
        return 3 * prod(self.stride)

    def latent_size(self, size: Triple) -> Triple:
        return box_grid(size, self.stride)

    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]:
        p, q, r = self.stride
        return rearrange(video, "b c (f p) (h q) (w r) -> b (c p q r) f h w", p=p, q=q, r=r)

    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]:
        p, q, r = self.stride
        return rearrange(latents, "b (c p q r) f h w -> b c (f p) (h q) (w r)", p=p, q=q, r=r)


class TextEncoder(Fixed, ABC):
    """Prompts -> text states. dim: of one state. length: states of a prompt.

    negative_prompt: what guidance leads away from, unless told.
    """

    length: int
    negative_prompt: str = ""

    if TYPE_CHECKING:  # as in Codec

        @property
        @abstractmethod
        def dim(self) -> int: ...

    @abstractmethod
    def __call__(self, prompts: list[str], device: torch.device) -> Float[Tensor, "b l e"]:
        """States of each prompt, padded with zeros to a fixed length."""

    def count(self, prompt: str) -> int:
        """States that a prompt would take, of which `length` are kept; here as many as it is given."""
        return self.length


@dataclass(frozen=True)
class ByteText(TextEncoder):
    """A fixed random vector for each byte and one for its place in the prompt; nothing is learned.

    Args:
        dim: of one state.
        length: bytes kept of a prompt.

    Raises ValueError for a size below 1 or above 65536.
    """

    kind: ClassVar[str] = "bytes"

    dim: int = 32
    length: int = 64

    def __post_init__(self) -> None:
        for name in ("dim", "length"):
            as_whole(f"the byte text's {name}", getattr(self, name))
            require(f"the byte text's {name}", getattr(self, name), most=MOST_LENGTH)

    @cached_property
    def _tables(self) -> tuple[Float[Tensor, "256 e"], Float[Tensor, "l e"]]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(256, self.dim, generator=generator), torch.randn(self.length, self.dim, generator=generator)

    def count(self, prompt: str) -> int:
        return len(prompt.encode())

    def __call__(self, prompts: list[str], device: torch.device) -> Float[Tensor, "b l e"]:
        letters, places = self._tables
        states = places.new_zeros(len(prompts), *places.shape)
        for row, prompt in zip(states, prompts, strict=True):
            codes = list(prompt.encode()[: len(row)])
            row[: len(codes)] = letters[codes] + places[: len(codes)]
        return states.to(device)
