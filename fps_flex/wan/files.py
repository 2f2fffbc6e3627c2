"""Tensors in files: safetensors, single or in shards."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import as_path, show, some
from .experts import find_experts
from .recognise import Shape, what_file

Which = Literal["average", "live"]

PICKLES = {".pth", ".pt", ".bin", ".pkl", ".pickle"}

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}  # by their codes in safetensors; others are as good as bytes, since no weight here is of them

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(\..+)?\.json")


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    shape: Shape
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFiles:
    """Safetensors files whose headers have been read. where: the file of each tensor."""

    where: dict[str, Path]
    specs: dict[str, Spec]

    def read(self, name: str) -> Tensor:
        """A tensor, in host memory; its file is opened anew.

        An open file keeps the pages that were read in memory: so only one tensor's are, whatever the size of a shard.
        """
        with open_safetensors(self.where[name]) as tensors:
            return tensors.get_tensor(name)


def open_files(path: Path) -> TensorFiles:
    """path: a safetensors file, the index of shards, or a folder with either or with all shards, also as its
    `transformer`.

    Raises ValueError for a missing file or shard, one of another kind or not whole, a tensor that is in two files, and
    where there is no tensor.
    """
    path = as_path("path", path)
    where: dict[str, Path] = {}
    specs: dict[str, Spec] = {}
    for file in _find_files(path):
        for name, spec in read_specs(file).items():
            if name in where:
                raise ValueError(f"{where[name]} and {file.name} both hold {name}: remove the one that is of no use")
            where[name], specs[name] = file, spec
    if not where:
        raise ValueError(f"{path} holds no tensors: fetch or save it again")
    return TensorFiles(where, specs)


def read_specs(file: Path) -> dict[str, Spec]:
    """Of all tensors in a safetensors file.

    Raises ValueError for another file, one that is not whole, and names that no line could say.
    """
    with open_safetensors(file) as tensors:
        if unsayable := next((name for name in tensors.keys() if not name.isprintable()), None):  # noqa: SIM118
            raise ValueError(f"{file} holds a tensor called {show(unsayable)}, expected printable names: save it again")
        parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        return {
            name: Spec(tuple(part.get_shape()), DTYPES.get(part.get_dtype(), torch.uint8))
            for name, part in parts.items()
        }


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file's header says beside its tensors. Raises ValueError as `read_specs`."""
    with open_safetensors(file) as tensors:
        return tensors.metadata() or {}


def match_shard(name: str) -> re.Match[str] | None:
    """The stem, number and count in the name of a file that is one of several; None for one that is alone."""
    shard = _SHARD.fullmatch(name)
    return shard if shard and int(shard["count"]) > 1 else None


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        if experts := find_experts(path):
            raise ValueError(f"{experts}: name one of them")
        return _find_in_folder(path / "transformer" if (path / "transformer").is_dir() else path)
    if not path.exists():
        raise ValueError(f"no {path}: expected a safetensors file, an index of shards, or a folder with either")
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder: expected safetensors")
    if _INDEX.fullmatch(path.name):
        return _shards(path)
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run code when it is read: expected safetensors")
    if shard := match_shard(path.name):
        raise ValueError(f"{path} is one of {shard['count']} shards: give their folder {path.parent}, or their index")
    return [path]


def _find_in_folder(folder: Path) -> list[Path]:
    """Files that begin with a dot, as macOS makes beside others, are none."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    models = _models(files)
    if len(models) == 1:
        (find,) = models.values()
        return find()
    if models:
        raise ValueError(f"{folder} holds {', '.join(models)}: name the one to load")
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is a pipeline without its transformer/: fetch that folder too")
    pickles = [file.name for file in files if file.suffix.lower() in PICKLES]
    others = [file.name for file in files if file.suffix.lower() in (".gguf", ".onnx", ".ckpt")]
    instead = ", ".join(others) or "none"
    if pickles:
        instead = f"only pickles ({', '.join(pickles)}), which can run code when they are read"
    trained = sorted(file for place in (folder, folder / "checkpoints") for file in place.glob("*.ckpt"))
    hint = f": name a checkpoint of training, such as {trained[-1]}" if trained else ""
    raise ValueError(f"expected a transformer's safetensors in {folder}, found {instead}{hint}")


def _models(files: list[Path]) -> dict[str, Callable[[], list[Path]]]:
    """The models among a folder's files, each by what it is called and how its files are found."""
    indices = [file for file in files if _INDEX.fullmatch(file.name)]
    named = {name for index in indices for name in _weight_map(index).values()}
    rest = [file for file in files if file.suffix == ".safetensors" and file.name not in named]
    sets: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    for file in rest:
        if shard := match_shard(file.name):
            sets[shard["stem"], shard["count"]][int(shard["number"])] = file
    in_sets = {file for shards in sets.values() for file in shards.values()}
    return {
        **{index.name: partial(_shards, index) for index in indices},
        **{f"{stem}-*-of-{n}.safetensors": partial(_complete, shards, int(n)) for (stem, n), shards in sets.items()},
        **{file.name: partial(list, [file]) for file in rest if file not in in_sets},
    }


def _complete(shards: dict[int, Path], count: int) -> list[Path]:
    """shards: those that are there without an index, by their numbers from 1. Raises ValueError if one is missing."""
    missing = list(islice((number for number in range(1, count + 1) if number not in shards), 5))
    beyond = [file.name for number, file in shards.items() if not 1 <= number <= count]
    if missing:
        folder, lacking = next(iter(shards.values())).parent, ", ".join(map(str, missing))
        raise ValueError(f"{folder} lacks number {lacking} of {count} shards: fetch the missing shards")
    if beyond:
        raise ValueError(f"{', '.join(beyond)}: expected shards numbered 1 to {count}")
    return [shards[number] for number in sorted(shards)]


def _shards(index: Path) -> list[Path]:
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}: fetch the missing shards")
    shard_of = {name: file for file in names for name in read_specs(index.parent / file)}
    wrong = [f"{name} is in {file}" for name, file in weight_map.items() if shard_of.get(name) != file]
    left_out = [name for name in shard_of if name not in weight_map]
    if wrong:
        raise ValueError(f"{index} says that {some(wrong)}, which is not so: fetch the index and its shards again")
    if left_out:
        raise ValueError(f"{index} leaves out {some(left_out)}, which its shards hold: fetch the index again")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor. Raises ValueError for no index, and for one that leads out of its folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        strange = [name for pair in weight_map.items() for name in pair if not name.isprintable()]
        outside = [name for name in weight_map.values() if Path(name).is_absolute() or ".." in Path(name).parts]
        [(index.parent / name).is_file() for name in weight_map.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is no index of shards: expected JSON with a weight_map") from None
    if strange:
        raise ValueError(f"{index} names {show(strange[0])}, expected printable names: fetch it again")
    if outside:
        raise ValueError(f"{index} names {outside[0]}, expected files in its own folder")
    return weight_map


def open_safetensors(file: Path) -> Any:
    """As safetensors' own `safe_open`. Raises ValueError for another file, and one that is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        if what := what_file(file):
            raise ValueError(f"{file} is {what}: expected safetensors")
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} can't be read as safetensors ({reason}): fetch or save it again") from None
