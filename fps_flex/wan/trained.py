"""Checkpoints of train.fit: a file, or the folder that several processes wrote together, a share of the rows each.

Such a folder holds the plain data in meta.pt, and the tensors in a file of safetensors for each process.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch

from ..checks import as_path
from .fields import check_checkpoint
from .files import Which, open_safetensors, read_specs
from .streamed import Part, Streamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

logger = logging.getLogger(__name__)

META = "meta.pt"
STATES = ("state_dict", "current_model_state")
OPTIMIZER = "optimizer"


def shard_name(number: int, count: int) -> str:
    """Of the file of a process, from 1 to their count."""
    return f"shard-{number:05}-of-{count:05}.safetensors"


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """What train.fit saved: `state_dict` with the averaged weights and `current_model_state` with the live ones, or,
    where no average was kept, `state_dict` with the live ones alone. And under `fps_flex` plain data that says which
    model they are, its `wan` and `attention` among it.
    Of a folder no tensor is read yet: its state dicts, and the momenta of each parameter, are `Streamed`.

    Raises ValueError for another file, and where one of these is missing or of another type; only plain data and
    tensors are read from it.
    """
    path = as_path("path", path)
    try:
        loaded = _read_folder(path) if path.is_dir() else _read_file(path)
        check_checkpoint(loaded)
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}") from None
    except Exception as error:
        if damage := _damage(path):
            raise ValueError(f"{path} is {damage}: copy it again") from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no checkpoint of this project ({reason})") from None
    return loaded


def weights_in(path: Path, loaded: dict[str, Any], which: Which) -> Mapping[str, Tensor]:
    """Those of a checkpoint of train.fit; where no average was kept, both are the live ones, which a line says."""
    if which == "live":
        return loaded.get("current_model_state", loaded["state_dict"])
    if "current_model_state" not in loaded:
        logger.info("%s has no averaged weights, which its run did not keep: the live ones are taken", path)
    return loaded["state_dict"]


def _read_file(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _read_folder(path: Path) -> dict[str, Any]:
    if not (path / META).is_file():
        raise ValueError(f"it is a folder without {META}")
    loaded = _read_file(path / META)
    count = loaded.pop("shards")
    states: dict[str, dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
    for file in (path / shard_name(number, count) for number in range(1, count + 1)):
        if not file.is_file():
            raise ValueError(f"it lacks {file.name}: copy it again")
        for key, spec in read_specs(file).items():
            state, _, name = key.rpartition("/")
            states[state][name].append(Part(spec.shape, spec.dtype, partial(_read_rows, file, key)))
    momenta = {int(key.partition("/")[2]): Streamed(x) for key, x in states.items() if key.startswith(OPTIMIZER)}
    for optimizer in loaded["optimizer_states"]:
        optimizer["state"] = momenta
    return loaded | {key: Streamed(states[key]) for key in STATES if key in states}


def _read_rows(file: Path, name: str, start: int, end: int) -> Tensor:
    """The file is opened anew, since an open one keeps the pages that were read in memory."""
    with open_safetensors(file) as tensors:
        part = tensors.get_slice(name)
        return part[start:end] if part.get_shape() else tensors.get_tensor(name)


def _damage(path: Path) -> str | None:
    """What a copy that broke off left of a checkpoint, which is a zip file whose list of contents comes last."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning:
        return "empty"
    return "cut short" if beginning == b"PK\3\4" and not is_zipfile(path) else None
