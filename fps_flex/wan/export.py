"""A transformer's weights as folders for stock tools."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args
from uuid import uuid4

from torch import Tensor

from ..checks import as_instance, as_path, as_whole, one_of, show
from .casting import Cast
from .experts import ALL
from .files import Spec, match_shard
from .hub import HUB
from .keys import to_diffusers
from .model import Wan
from .stock import diffusers_config, official_config
from .weights import SETTINGS, Weights
from .writing import write_file, write_json, write_shards

SHARD_BYTES = 5_000_000_000

Format = Literal["official", "diffusers", "comfyui"]  # comfyui: the official names, in one file


def save_wan(model: Wan, folder: str | Path, naming: Format) -> None:
    """Save a model for stock tools. Raises ValueError as `export`."""
    as_instance("model", model, Wan)
    state = model.state_dict()
    specs = {name: Spec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    export(Weights(model.config, specs, state.__getitem__), folder, naming)


def export(
    weights: Weights,
    folder: str | Path,
    naming: Format,
    shard_bytes: int | None = SHARD_BYTES,
    cast: Cast | None = None,
) -> None:
    """Write safetensors, config.json, and a checkpoint's attention or an expert's noise levels.

    The folder appears whole or not at all.

    shard_bytes: the most in a file that doesn't hold one tensor alone; None writes one file, as comfyui always does.
    cast: to another dtype; what it rounds it notes.
    Raises ValueError when it exists or can't be written, for another naming, and as `cast`.
    """
    as_instance("weights", weights, Weights)
    one_of("naming", naming, get_args(Format))
    folder = new_folder(folder, naming)
    cast = Cast() if cast is None else as_instance("cast", cast, Cast)
    if shard_bytes is not None:
        as_whole("shard_bytes", shard_bytes)
    specs = {name: cast.spec(name, spec) for name, spec in weights.specs.items()}
    with appearing(folder) as temporary:
        check_room(folder, sum(spec.nbytes for spec in specs.values()))
        names = {to_diffusers(name) if naming == "diffusers" else name: name for name in specs}
        renamed = {new: specs[name] for new, name in names.items()}

        def read(new: str) -> Tensor:
            return cast(names[new], weights.read(names[new]))

        if naming == "comfyui":
            write_file(temporary / f"{folder.name}.safetensors", renamed, read)
        else:
            write_shards(temporary, renamed, read, shard_bytes)
        _describe(temporary, weights, naming)


def _describe(folder: Path, weights: Weights, naming: Format) -> None:
    """Write what weights don't show: config.json, and the settings or the noise levels where there are any."""
    config = (diffusers_config if naming == "diffusers" else official_config)(weights.config)
    write_json(folder / "config.json", config)
    expert = {"noise_levels": list(weights.noise_levels)} if weights.noise_levels != ALL else None
    if settings := weights.settings or expert:
        write_json(folder / SETTINGS, settings)


def new_folder(folder: object, naming: Format) -> Path:
    """Raises ValueError for no path, one of something that is there, or a name whose file no folder is read with."""
    path = as_path("folder", folder)
    if str(path).startswith(HUB):
        raise ValueError(f"folder is {show(str(path))}, expected one on this machine")
    if path.suffix in (".safetensors", ".ckpt"):
        raise ValueError(f"folder is {show(str(path))}, expected a folder's name, without a file's ending")
    file = f"{path.name}.safetensors"
    if naming == "comfyui" and (file.startswith(".") or match_shard(file)):
        what = "one shard of several" if match_shard(file) else "a hidden file"
        raise ValueError(f"folder is {show(str(path))}, whose {show(file)} would be {what}: choose another name")
    _check_new(path)
    return path


def _check_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists already: choose another folder")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Where to write what is to be a folder. A failure leaves nothing.

    Each call writes into a folder of its own, so that of two at once one is refused at the end and neither touches the
    other's files; what a killed one leaves, .NAME.*.part, is therefore nobody's to remove but the user's.
    Raises ValueError where it can't be written, and where the folder has appeared meanwhile.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _check_new(folder)  # rename would take the place of an empty one
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            _check_new(folder)
            raise ValueError(f"{folder} can't be written ({error.strerror or error})") from None
        raise


def check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < size:
        raise ValueError(f"{folder} would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: make room")
