"""LoRAs: what is added to a transformer's weights, read from any file that people have."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import as_fields, as_path, is_real, show
from .adapter_alpha import Alpha, find_alpha
from .adapter_names import Key, describe_others, parse
from .casting import check_finite
from .files import Which, open_files
from .fingerprint import digest_held, held_in_memory
from .recognise import LORA, what_names
from .trained import read_training_checkpoint, weights_in

if TYPE_CHECKING:
    from jaxtyping import Float

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MATRICES = {"down", "up", "alpha"}  # parts of a layer; the others are whole differences


@dataclass(frozen=True)
class LowRank:
    """What is added to a layer's weight: alpha / r * up @ down. Of a convolution each has its sizes at the end."""

    down: Float[Tensor, "r i ..."]
    up: Float[Tensor, "o r ..."]
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape[0], *self.down.shape[1:]

    def delta(self) -> Float[Tensor, "o i ..."]:
        """In fp32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return product.mul_(self.alpha / self.rank).view(self.shape)


@dataclass(frozen=True)
class Adapter:
    """layers: of low rank, by the official names of modules. differences: of whole tensors, by theirs.

    Distilled LoRAs for few steps have differences of biases and norms beside their layers.
    """

    layers: dict[str, LowRank]
    differences: dict[str, Tensor]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that something is added to, by their official names."""
        return {f"{name}.weight": layer.shape for name, layer in self.layers.items()} | {
            name: tuple(tensor.shape) for name, tensor in self.differences.items()
        }

    def delta(self, name: str) -> Tensor:
        """What is added to a tensor of `shapes`, in fp32."""
        layer = self.layers.get(name.removesuffix(".weight"))
        parts = [layer.delta()] if layer and name.endswith(".weight") else []
        parts += [self.differences[name].float()] if name in self.differences else []
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def fingerprint(self) -> str:
        """The same in another naming, another for other values: a digest as of `digest_held`."""
        tensors = {f"{name}.{part}": x for name, layer in self.layers.items() for part, x in _parts(layer).items()}
        return digest_held({name: held_in_memory(x) for name, x in (tensors | self.differences).items()})


def _parts(layer: LowRank) -> dict[str, Tensor]:
    return {"down": layer.down, "up": layer.up, "alpha": torch.tensor(layer.alpha, dtype=torch.float64)}


def holds_adapter(path: str | Path) -> bool:
    """Whether a file or folder holds a LoRA, or a .ckpt of train.fit that trained one. Raises ValueError for none."""
    path = as_path("path", path)
    if path.suffix == ".ckpt":
        return "lora" in read_training_checkpoint(path)["fps_flex"]
    return any(re.search(LORA, name) for name in open_files(path).specs)


def read_adapter(path: str | Path, which: Which = "average") -> Adapter:
    """path: safetensors (a file, or a folder with one) in any naming: diffusers', ComfyUI's and the original one,
    DiffSynth's, musubi's and kohya's, peft's; or a .ckpt of train.fit that trained a LoRA. which: weights of a .ckpt.

    Raises ValueError for what is missing, broken, quantised or not finite, for half a pair, ranks that don't agree and
    an alpha that isn't above 0, for a whole model, and for names that are none of a text-to-video Wan's LoRA.
    """
    path = as_path("path", path)
    if path.suffix == ".ckpt":
        return adapter_in(path, read_training_checkpoint(path), which)
    files = open_files(path)
    if not any(re.search(LORA, name) for name in files.specs):
        what = what_names(files.specs) or f"a whole model ({next(iter(files.specs))})"
        raise ValueError(f"{path} is {what}, expected a LoRA")
    tensors = {name: files.read(name) for name in files.specs}
    return _collect(path, tensors, find_alpha(files.where[next(iter(tensors))], tensors))


def adapter_in(path: Path, loaded: dict[str, Any], which: Which) -> Adapter:
    """The LoRA of a checkpoint of train.fit. loaded: what it holds.

    Raises ValueError as `read_adapter`, and where the checkpoint trained no LoRA.
    """
    if "lora" not in loaded["fps_flex"]:
        raise ValueError(f"{path} is a whole model that train.fit trained, expected a LoRA")
    record = as_fields(f"{path}: its fps_flex.lora", loaded["fps_flex"]["lora"], ("rank", "alpha", "targets"))
    adapter = _collect(path, weights_in(path, loaded, which), lambda name, rank: record["alpha"])
    if not adapter.layers:
        raise ValueError(f"{path} is no checkpoint of this project (its LoRA has no layers)")
    wrong = next((name for name, layer in adapter.layers.items() if layer.rank != record["rank"]), None)
    if wrong:
        raise ValueError(
            f"{path} is no checkpoint of this project ({wrong} is of rank {adapter.layers[wrong].rank}, its "
            f"fps_flex.lora says {record['rank']})"
        )
    return adapter


def _collect(path: Path, tensors: Mapping[str, Tensor], alpha: Alpha) -> Adapter:
    """The layers and differences that tensors, by the file's names, make up."""
    keys = {name: parse(name) for name in tensors}
    if others := [name for name, key in keys.items() if key is None]:
        raise ValueError(f"{path} is {describe_others(others)}, expected a LoRA of a text-to-video Wan transformer")
    parts: dict[str, dict[str, tuple[Key, Tensor]]] = defaultdict(dict)
    for name, key in keys.items():
        assert key is not None
        if key.part in parts[key.module]:
            raise ValueError(f"{path} holds {name} twice, in two namings: save one LoRA in a file")
        _check_values(path, name, tensors[name])
        parts[key.module][key.part] = key, tensors[name]
    layers = {
        name: _layer(path, name, own, alpha) for name, own in parts.items() if own.keys() & (MATRICES | {"up_bias"})
    }
    return Adapter(layers, _differences(path, parts, layers))


def _check_values(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES and not name.endswith(".alpha"):
        raise ValueError(f"{path}: {name} is of {tensor.dtype}, expected a LoRA in fp32, bf16 or fp16")
    try:
        check_finite(name, tensor)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _layer(path: Path, name: str, parts: dict[str, tuple[Key, Tensor]], alpha: Alpha) -> LowRank:
    missing = [part for part in ("down", "up") if part not in parts]
    if missing:
        raise ValueError(f"{path} lacks the {missing[0]} matrix of {name}: fetch or save it again")
    (key, down), (_, up) = parts["down"], parts["up"]
    dims, one = (5, (1, 1, 1)) if name == "patch_embedding" else (2, ())
    fits = down.dim() == up.dim() == dims and down.shape[0] == up.shape[1] and up.shape[2:] == one
    if not fits or not (down.numel() and up.numel()):
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise ValueError(f"{path}: {name} has {shapes}, expected two matrices of one rank, (r, in) and (out, r)")
    values = parts["alpha"][1].flatten().tolist() if "alpha" in parts else [alpha(key.own, down.shape[0])]
    if len(values) != 1 or not (is_real(values[0]) and values[0] > 0):
        value = show(values[0] if len(values) == 1 else values)
        raise ValueError(f"{path}: alpha of {name} is {value}, expected a number above 0")
    return LowRank(down, up, float(values[0]))


def _differences(
    path: Path, parts: dict[str, dict[str, tuple[Key, Tensor]]], layers: dict[str, LowRank]
) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, own in parts.items():
        for part, (key, tensor) in own.items():
            if part in MATRICES:
                continue
            if key.tensor in made:
                raise ValueError(f"{path} holds two differences of {key.tensor}: save one LoRA in a file")
            scale = layers[name].alpha / layers[name].rank if part == "up_bias" else 1
            made[key.tensor] = tensor if scale == 1 else tensor.float() * scale
    return made
