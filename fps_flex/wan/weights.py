"""Wan's weights: official, diffusers, ComfyUI's and trained here -> model.py."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..attention import FPSAttention
from ..checks import as_device, as_fields, as_instance, as_path, one_of, show, some
from .adapters import adapter_in
from .casting import check_finite, keeps_fp32
from .config import WanConfig
from .experts import Levels, as_levels, levels_of
from .fields import check_record
from .files import Shape, Spec, Which, open_files
from .fp8_files import FLOAT8, READABLE, without_scales
from .hub import HUB, local
from .keys import official_names, unwrap
from .merging import merge
from .model import Wan
from .opened import Weights
from .recognise import what_channels, what_names
from .sizes import infer_config
from .streamed import dtype_of, shape_of
from .trained import read_training_checkpoint, weights_in

SETTINGS = "fps_flex.json"  # beside exported weights: the attention and the noise levels that they are for
RELEASED = {"noise_levels"}  # all that it says of an expert of a release
MADE_WITH = ("residual", "shift", "clip", "text_length")  # of those settings, what may be left unsaid


def open_weights(path: str | Path, which: Which = "average", base: str | Path | None = None) -> Weights:
    """path: safetensors in the official or in the diffusers naming, also as ComfyUI has them (a file, an index of
    shards, or a folder with either or with all shards), hf: and the name of a release that has them, or a .ckpt of
    train.fit, of which `which` picks the weights. Those of a LoRA are added to the weights that it was trained on,
    which are where they were then, or at `base`.

    Raises ValueError for what is missing, broken, quantised, a pickle or another model, for tensors that are not
    exactly a text-to-video Wan transformer's, for another `which`, or the live weights of anything but a .ckpt, for
    other weights than a LoRA was trained on, and for a base of anything but a LoRA's .ckpt.
    """
    path = local(path)
    one_of("which", which, get_args(Which))
    if path.suffix == ".ckpt":
        loaded = read_training_checkpoint(path)
        if "lora" in loaded["fps_flex"]:
            return _open_adapted(path, loaded, which, base)
    if base is not None:
        raise ValueError(f"base is {show(str(base))}, of a LoRA's .ckpt, and {path} is none: leave it out")
    if path.suffix == ".ckpt":
        return _open_trained(path, loaded, which)
    if which == "live":
        raise ValueError(f"{path} has no live weights beside averaged ones: only a .ckpt of train.fit does")
    return _open_released(path)


def load_wan(
    path: str | Path,
    attention: FPSAttention,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Wan:
    """The model on a device, tensor by tensor: the host holds at most it and one tensor more.

    dtype: of the weights, except those that stay fp32; None keeps what the file has, and takes bf16 for float8.
    Raises ValueError as `open_weights` does, and for arguments of other types.
    """
    as_instance("attention", attention, FPSAttention)
    device = as_device("device", device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {show(dtype)}, expected a floating-point dtype of torch, or None")
    weights = open_weights(path)
    model = build_empty(weights.config, attention)
    fill(model, (weights.unrounded if dtype else weights).stream(), device, dtype)
    return model


def read_settings(path: str | Path) -> tuple[WanConfig, FPSAttention]:
    """The sizes of a model that was trained here, or saved with FPS attention from diffusers, and its attention.

    path: a .ckpt of train.fit, or such a folder. Raises ValueError where it doesn't say them.
    """
    settings = read_saved_settings(path)
    return _config_from(settings["wan"]), FPSAttention.from_dict(settings["attention"])


def read_saved_settings(path: str | Path) -> dict[str, Any]:
    """What goes along when weights are saved elsewhere, as in `Weights.settings`. path, errors: as `read_settings`."""
    path = as_path("path", path)
    record = read_training_checkpoint(path)["fps_flex"] if path.suffix == ".ckpt" else _read_exported(path)
    if record.keys() == RELEASED:
        raise ValueError(f"{path} is of a release, which has no attention of its own: its {SETTINGS} says noise levels")
    try:
        check_record(SETTINGS, record)
        levels = as_levels("noise_levels", record["noise_levels"]) if "noise_levels" in record else None
        return _settings(_config_from(record["wan"]), FPSAttention.from_dict(record["attention"]), levels, record)
    except (KeyError, ValueError) as error:
        raise _unsaid(path, error) from None


def _read_exported(folder: Path) -> dict[str, Any]:
    try:
        return as_instance(SETTINGS, json.loads((folder / SETTINGS).read_text(encoding="utf-8")), dict)
    except OSError:
        raise ValueError(
            f"no {SETTINGS} in {folder}: expected a .ckpt of train.fit, or the folder that fps_flex.weights made of one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _unsaid(folder, error) from None


def _unsaid(path: Path, error: Exception) -> ValueError:
    reason = str(error) if type(error) is ValueError else repr(error)
    return ValueError(f"{path} doesn't say its attention ({reason}): export it again from its .ckpt")


def _config_from(data: Any) -> WanConfig:
    """Sizes as a checkpoint says them. Raises ValueError for anything else."""
    try:
        return WanConfig(**as_fields("wan", data, [field.name for field in fields(WanConfig)]))
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{error!r} for wan = {show(data)}") from None


def build_empty(config: WanConfig, attention: FPSAttention) -> Wan:
    """A model on the meta device, to be filled."""
    with torch.device("meta"):
        return Wan(config, attention)


def fill(
    model: Wan, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Put tensors, with their official names, in the place of a model's own; each is copied. Where a model's parameters
    are shared out to processes (FSDP2), each takes its own rows.

    dtype: as for `load_wan`. Raises ValueError for a tensor of whole numbers, since quantised weights are not
    the model's, and for values that are not finite in the dtype.
    """
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of {tensor.dtype}, expected floating-point weights, not quantised ones")
        own = torch.bfloat16 if tensor.dtype in FLOAT8 else tensor.dtype
        kept = torch.float32 if keeps_fp32(name) else dtype or own
        made = tensor.to(device, kept, copy=True)
        check_finite(name, made)
        place = model.get_submodule(owner)
        setattr(place, leaf, _as_own(made, getattr(place, leaf)))


def _as_own(made: Tensor, own: Any) -> nn.Parameter:
    """A parameter of these values, shared out to processes as the one in its place is."""
    if not hasattr(own, "placements"):
        return nn.Parameter(made)
    from torch.distributed.tensor import distribute_tensor  # a second to import, of which one process has no use

    rows = distribute_tensor(made, own.device_mesh, own.placements, src_data_rank=None)  # each has all: none is sent
    return nn.Parameter(rows, own.requires_grad)


def _open_released(path: Path) -> Weights:
    files = open_files(path)
    unscaled = without_scales(path, files, unwrap(path, files.where))
    specs = unscaled.specs
    if what := what_names(specs):
        raise ValueError(f"{path} is {what}, expected a text-to-video Wan transformer's weights")
    names = official_names(path, specs)
    official = {name: specs[plain] for name, plain in names.items()}
    shapes = {name: spec.shape for name, spec in official.items()}
    if what := what_channels(shapes):
        raise ValueError(f"{path} is {what}, expected a text-to-video Wan transformer's weights")
    folder = next(iter(files.where.values())).parent
    config = infer_config(path, shapes, folder)
    _check_shapes(path, shapes, config)
    settings, levels = _exported_as(config, folder) if (folder / SETTINGS).is_file() else (None, levels_of(path))
    return Weights(config, official, lambda name: unscaled.read(names[name]), None, settings, levels, files)


def _exported_as(config: WanConfig, folder: Path) -> tuple[dict[str, Any] | None, Levels]:
    """What an exported folder says beside its weights: the settings, of a released expert none, and the noise levels.

    What `diffusers.install` saved doesn't know its noise levels: they are those of a release in that folder.
    Raises ValueError where it is of other sizes, or lacks something.
    """
    record = _read_exported(folder)
    try:
        from_diffusers = "attention" in record and "noise_levels" not in record
        levels = levels_of(folder) if from_diffusers else as_levels("noise_levels", record.get("noise_levels"))
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS} doesn't say its noise levels ({error}): export it again") from None
    if record.keys() == RELEASED:
        return None, levels
    settings = read_saved_settings(folder)
    sizes = _config_from(settings["wan"])
    if sizes != config:
        raise ValueError(f"{folder / SETTINGS} is of another model ({sizes}) than the weights beside it ({config})")
    return {**settings, "noise_levels": list(levels)}, levels


def _settings(
    config: WanConfig, attention: FPSAttention, levels: Levels | None, record: dict[str, Any]
) -> dict[str, Any]:
    """What goes along with exported weights. record: of a checkpoint, or of what was exported of one."""
    settings: dict[str, Any] = {"wan": asdict(config), "attention": asdict(attention)}
    settings |= {"noise_levels": list(levels)} if levels else {}
    settings |= {name: record[name] for name in MADE_WITH if name in record}
    length = record.get("text", {}).get("options", {}).get("length")
    return settings if length is None else settings | {"text_length": length}


def _open_trained(path: Path, loaded: dict[str, Any], which: Which) -> Weights:
    state = weights_in(path, loaded, which)
    names = {name.removeprefix("model."): name for name in state}
    specs = {official: Spec(shape_of(state, name), dtype_of(state, name)) for official, name in names.items()}
    config, settings, levels = _settings_in(path, loaded)
    _check_shapes(path, {name: spec.shape for name, spec in specs.items()}, config)
    quantised = [f"{name} is of {spec.dtype}" for name, spec in specs.items() if spec.dtype not in READABLE]
    if quantised:
        raise ValueError(f"{path}: {quantised[0]}, expected floating-point weights, not quantised ones")
    return Weights(config, specs, lambda name: state[names[name]], loaded["fps_flex"], settings, levels)


def _settings_in(path: Path, loaded: dict[str, Any]) -> tuple[WanConfig, dict[str, Any], Levels]:
    """The sizes, settings and noise levels of a checkpoint of train.fit."""
    record = loaded["fps_flex"]
    try:
        config = _config_from(record["wan"])
        attention = FPSAttention.from_dict(record["attention"])
        levels = as_levels("noise_levels", record["noise_levels"])
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of this project ({error})") from None
    # through the class, so that a preset's name in an older checkpoint becomes its numbers
    return config, _settings(config, attention, levels, record), levels


def _open_adapted(path: Path, loaded: dict[str, Any], which: Which, base: str | Path | None) -> Weights:
    """The weights that a LoRA was trained on, with what it adds to them."""
    config, settings, levels = _settings_in(path, loaded)
    adapter = adapter_in(path, loaded, which)
    below = _open_base(path, loaded["fps_flex"], base)
    if below.config != config:
        raise ValueError(f"{path} was trained on another model ({config}) than its base is ({below.config})")
    merged = merge(below, adapter, path=path)
    return replace(merged, trained=loaded["fps_flex"], settings=settings, noise_levels=levels)


def _open_base(path: Path, record: dict[str, Any], base: str | Path | None) -> Weights:
    if "base" not in record:
        raise ValueError(f"{path} is no checkpoint of this project (it lacks fps_flex.base)")
    where = str(base if base is not None else record["base"]["path"])
    if not where.startswith(HUB) and not as_path("base", where).exists():
        raise ValueError(f"{where}, what the LoRA {path} was trained on, is not there: name where it is with --base")
    below = open_weights(where)
    if (now := below.fingerprint()) != (expected := record["base"]["fingerprint"]):
        raise ValueError(
            f"{where} is not what the LoRA {path} was trained on ({now}, expected {expected}): name that with --base"
        )
    return below


def _check_shapes(path: Path, shapes: dict[str, Shape], config: WanConfig) -> None:
    expected = _expected_shapes(path, config, most_layers=len(shapes))
    wrong = [
        *(f"unknown {name}" for name in shapes if name not in expected),
        *(f"missing {name}" for name in expected if name not in shapes),
        *(
            f"{name} of shape {shapes[name]}, expected {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ),
    ]
    if wrong:
        raise ValueError(f"{path} is no text-to-video Wan transformer: {some(wrong, 8, '; ')}")


def _expected_shapes(path: Path, config: WanConfig, most_layers: int) -> dict[str, Shape]:
    """Of each tensor of such a model. most_layers: more than these can't be there, and would take long to build."""
    try:
        if config.layers > most_layers:
            raise ValueError(f"{config.layers} layers in {most_layers} tensors")
        return {name: tuple(x.shape) for name, x in build_empty(config, FPSAttention()).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no text-to-video Wan transformer: no model is of its sizes ({reason})") from None
