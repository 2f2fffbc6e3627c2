"""Tensors in files: safetensors, single or in shards, and the checkpoints of training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checks import as_path
from .experts import find_experts

Shape = tuple[int, ...]

PICKLES = {".pth", ".pt", ".bin", ".pkl", ".pickle"}
STEM = "diffusion_pytorch_model"  # of the files of the official and of the diffusers release alike


@dataclass(frozen=True)
class TensorFiles:
    """Safetensors files whose headers have been read. where: the file of each tensor. shapes: of each tensor."""

    where: dict[str, Path]
    shapes: dict[str, Shape]

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its name, in host memory; every file is opened anew for each.

        An open file keeps the pages that were read in memory: so only one tensor's are, whatever the size of a shard.
        """
        for name, file in self.where.items():
            with _open(file) as tensors:
                yield name, tensors.get_tensor(name)


def open_files(path: Path) -> TensorFiles:
    """path: a safetensors file, the index of shards, or a folder with either, also as its `transformer`.

    Raises ValueError for a missing file or shard, a pickle, a file that is not whole, and where there is no tensor.
    """
    path = as_path("path", path)
    where, shapes = {}, {}
    for file in _find_files(path):
        with _open(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                where[name] = file
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    if not where:
        raise ValueError(f"{path} holds no tensors: fetch or save it again")
    return TensorFiles(where, shapes)


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        if experts := find_experts(path):
            raise ValueError(f"{experts}: name one of them")
        return _find_in_folder(path / "transformer" if (path / "transformer").is_dir() else path)
    if not path.exists():
        raise ValueError(f"no {path}: expected a safetensors file, an index of shards, or a folder with either")
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code when it is read: expected safetensors")
    return [path]


def _find_in_folder(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        return _shards(indices[0])
    if not indices and len(files) == 1:
        return files
    if indices or files:
        several = ", ".join(file.name for file in indices or files)
        raise ValueError(f"{folder} holds {several}: name the one to load")
    pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLES]
    found = f"only pickles ({', '.join(pickles)}), which can run code when they are read" if pickles else "none"
    raise ValueError(f"expected a transformer's safetensors in {folder}, found {found}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (index.parent / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards: expected JSON with a weight_map") from None
    if missing:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}: fetch the missing shards")
    return [index.parent / name for name in names]


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} can't be read as safetensors ({reason}): fetch or save it again") from None


def write_files(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Save tensors into a folder that exists, in shards of up to `shard_bytes` with an index, or in one file."""
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        shards.append(list(pending))
        save_file(pending, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(x.nbytes for x in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor.detach().cpu().contiguous()
        total += tensor.nbytes
    flush()

    if len(shards) == 1:
        (folder / "1.part").rename(folder / f"{STEM}.safetensors")
        return
    files = [f"{STEM}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for i, file in enumerate(files, start=1):
        (folder / f"{i}.part").rename(folder / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """What train.fit saved: `state_dict` with the averaged weights, `current_model_state` with the live ones where they
    were averaged, and under `fps_flex` plain data that says which model they are, its `wan` and `attention` among it.

    Raises ValueError for another file, and where one of these is missing or of another type; only plain data and
    tensors are read from it.
    """
    path = as_path("path", path)
    try:
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        _check_training_checkpoint(held)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no checkpoint of this project ({reason})") from None
    return held


def _check_training_checkpoint(held: Any) -> None:
    if not isinstance(held, dict) or not {"state_dict", "fps_flex"} <= set(held):
        raise ValueError("it lacks state_dict or fps_flex")
    for name in ("state_dict", "current_model_state"):
        state = held.get(name, {})
        if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
            raise ValueError(f"its {name} is no dict of tensors")
        if not all(isinstance(key, str) for key in state):
            raise ValueError(f"its {name} has a key that is no name")
    said = held["fps_flex"]
    lacking = [name for name in ("wan", "attention") if not isinstance(said, dict) or name not in said]
    if lacking:
        raise ValueError(f"it lacks {' and '.join(f'fps_flex.{name}' for name in lacking)}")
    for name in ("wan", "attention"):
        if not isinstance(said[name], dict):
            raise ValueError(f"its fps_flex.{name} is a {type(said[name]).__name__}, expected a dict")
