"""A codec without a network: boxes of pixels by their principal components, fitted to the clips that are trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from ..checks import Triple, as_fields, as_triple, as_whole, at_home, is_finite
from .codecs import Codec, box_grid, digest
from .fingerprint import digest_held, held_in_file
from .release import PartError, first_line

if TYPE_CHECKING:
    from jaxtyping import Float

METADATA = "fps-flex"  # one entry, as the order of several isn't fixed
FIT = "fit one with python -m train.codec"
ORTHONORMAL = 1e-4  # how far basis @ basis.T may be from the identity


@dataclass(frozen=True)
class Components:
    """basis [k, n]: orthonormal rows, a component each. mean [n]: of a box. scale [k]: what components are divided by.

    Raises ValueError where shapes or values can't be meant.
    """

    box: Triple
    basis: Tensor  # as files hold them: what they are is checked here
    mean: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        n = 3 * prod(self.box)
        k = len(self.basis) if self.basis.ndim else 0
        for name, shape in (("basis", (k, n)), ("mean", (n,)), ("scale", (k,))):
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or not tensor.is_floating_point() or not is_finite(tensor):
                raise ValueError(f"{name} is of {tuple(tensor.shape)} and {tensor.dtype}, expected finite {shape}")
        if not 1 <= k <= n:
            raise ValueError(f"basis has {k} components of {n} numbers, expected 1 to {n}")
        if (self.basis.double() @ self.basis.double().T - torch.eye(k)).abs().max() > ORTHONORMAL:
            raise ValueError("basis isn't orthonormal")
        if self.scale.min() <= 0:
            raise ValueError("scale holds numbers that aren't above 0")

    def tensors(self) -> dict[str, Tensor]:
        return {"basis": self.basis, "mean": self.mean, "scale": self.scale}


@dataclass(frozen=True)
class LinearCodec(Codec):
    """Boxes of pixels as so many numbers, their principal components; what these leave out is lost.

    Args:
        path: safetensors file that train.codec wrote.

    Raises ValueError when there is none, or it is broken.
    """

    kind: ClassVar[str] = "linear"

    path: str

    def __post_init__(self) -> None:
        self._fingerprint  # noqa: B018 - a wrong path is said at once; and later the file may be another

    @cached_property
    def _components(self) -> Components:
        return read_components(at_home(self.path))

    @property
    def channels(self) -> int:
        return len(self._components.basis)

    @property
    def box(self) -> Triple:
        """Frames, rows and columns of a latent."""
        return self._components.box

    def latent_size(self, size: Triple) -> Triple:
        return box_grid(size, self.box)

    def fingerprint(self) -> str:
        """What makes its latents, wherever the file lies and whatever else it says."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        settings = digest({"box": self.box})
        return f"settings {settings}, weights {digest_held(held_in_file(at_home(self.path)))}"

    def identity(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint()}

    def encode(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c tf th tw"]:
        """In fp32, in video's dtype."""
        p, q, r = self.box
        with torch.autocast(video.device.type, enabled=False):
            boxes = rearrange(video.float(), "b c (f p) (h q) (w r) -> b f h w (c p q r)", p=p, q=q, r=r)
            basis, mean, scale = self._on(video.device)
            latents = (boxes - mean) @ basis.T / scale
        return rearrange(latents, "b f h w k -> b k f h w").to(video.dtype)

    def decode(self, latents: Float[Tensor, "b c tf th tw"]) -> Float[Tensor, "b 3 f h w"]:
        """In fp32, in latents' dtype."""
        p, q, r = self.box
        with torch.autocast(latents.device.type, enabled=False):
            basis, mean, scale = self._on(latents.device)
            boxes = (rearrange(latents.float(), "b k f h w -> b f h w k") * scale) @ basis + mean
        video = rearrange(boxes, "b f h w (c p q r) -> b c (f p) (h q) (w r)", c=3, p=p, q=q, r=r)
        return video.to(latents.dtype)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        parts = self._components
        return parts.basis.to(device), parts.mean.to(device), parts.scale.to(device)


def read_components(path: Path) -> Components:
    """Raises PartError where there is no such file, or it is another or broken."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"no {path}"
        raise PartError(f"{found}, expected the file of a linear codec: {FIT}")
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return _check(record, tensors)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise PartError(f"{path} is no linear codec ({first_line(error)}): {FIT}") from None


def _check(record: Any, tensors: Mapping[str, Tensor]) -> Components:
    if not isinstance(record, dict) or record.get("kind") != LinearCodec.kind:
        raise ValueError(f"it doesn't say that it is of the kind {LinearCodec.kind}")
    names = [field.name for field in fields(Components) if field.name != "box"]
    parts = as_fields("its tensors", dict(tensors), names)
    components = Components(as_triple("its box", record.get("box")), **parts)
    channels = as_whole("its channels", record.get("channels"))
    if channels != len(components.basis):
        raise ValueError(f"it says {channels} channels and holds {len(components.basis)}")
    return Components(components.box, *(tensor.float() for tensor in components.tensors().values()))
