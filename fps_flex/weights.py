"""Wan2.1's weights: official, diffusers and trained here -> wan.py, and back out for stock tools.

python -m fps_flex.weights convert runs/mine/checkpoints/last.ckpt exported --format diffusers
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .attention import FPSAttention
from .checks import as_device, as_instance, as_path, as_whole, one_of, show
from .files import Shape, open_files, read_training_checkpoint, write_files
from .names import Naming, naming_of, to_diffusers, to_official
from .wan import Wan, WanConfig

# these compute in fp32 and are kept in it, whatever the rest is in
FP32 = ("modulation", "norm", "time_embedding", "time_projection")
HEAD_DIM = 128  # of every Wan2.1, where no config.json says otherwise
SHARD_BYTES = 5_000_000_000
SETTINGS = "fps_flex.json"  # beside weights exported from a checkpoint: the attention that they were trained with

Which = Literal["average", "live"]


@dataclass(frozen=True)
class Weights:
    """A transformer's weights: found and checked, but not read yet.

    config: its sizes. stream: yields each tensor with its official name. trained: what a checkpoint of train.fit says
    about the attention, the codecs and the clips it was trained with; None for released weights.
    """

    config: WanConfig
    stream: Callable[[], Iterator[tuple[str, Tensor]]]
    trained: dict[str, Any] | None = None


def open_weights(path: str | Path, which: Which = "average") -> Weights:
    """path: safetensors in the official or in the diffusers naming (a file, an index of shards, or a folder with
    either), or a .ckpt of train.fit, of which `which` picks the weights.

    Raises ValueError for what is missing, broken or a pickle, for tensors that are not exactly a text-to-video Wan
    transformer's, and for another `which`.
    """
    path = as_path("path", path)
    one_of("which", which, get_args(Which))
    if path.suffix == ".ckpt":
        return _open_trained(path, which)
    files = open_files(path)
    official = to_official if naming_of(set(files.where)) == "diffusers" else str
    shapes = {official(name): shape for name, shape in files.shapes.items()}
    config = _infer_config(path, shapes, next(iter(files.where.values())).parent)
    _check_shapes(path, shapes, config)
    return Weights(config, lambda: ((official(name), tensor) for name, tensor in files.stream()))


def load_wan(
    path: str | Path,
    attention: FPSAttention,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Wan:
    """The model on a device, tensor by tensor: the host holds at most it and one tensor more.

    dtype: of the weights, except those that stay fp32; None keeps what the file has. Raises ValueError as
    `open_weights` does, and for arguments of other types.
    """
    as_instance("attention", attention, FPSAttention)
    device = as_device("device", device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is {show(dtype)}, expected a floating-point dtype of torch, or None")
    weights = open_weights(path)
    model = build_empty(weights.config, attention)
    fill(model, weights.stream(), device, dtype)
    return model


def read_settings(path: str | Path) -> tuple[WanConfig, FPSAttention]:
    """The sizes of a model that was trained here, and its attention.

    path: a .ckpt of train.fit, or a folder exported from one. Raises ValueError where it doesn't say them.
    """
    path = as_path("path", path)
    held = read_training_checkpoint(path)["fps_flex"] if path.suffix == ".ckpt" else _read_exported(path)
    try:
        return _config_from(held["wan"]), FPSAttention.from_dict(held["attention"])
    except (KeyError, ValueError) as error:
        raise _unsaid(path, error) from None


def _read_exported(folder: Path) -> dict[str, Any]:
    try:
        return as_instance(SETTINGS, json.loads((folder / SETTINGS).read_text(encoding="utf-8")), dict)
    except OSError:
        raise ValueError(
            f"no {SETTINGS} in {folder}: expected a .ckpt of train.fit, or the folder that fps_flex.weights made of one"
        ) from None
    except ValueError as error:
        raise _unsaid(folder, error) from None


def _unsaid(path: Path, error: Exception) -> ValueError:
    reason = str(error) if type(error) is ValueError else repr(error)
    return ValueError(f"{path} doesn't say its attention ({reason}): export it again from its .ckpt")


def _config_from(data: Any) -> WanConfig:
    """Sizes as a checkpoint says them. Raises ValueError for anything else."""
    try:
        return WanConfig(**as_instance("wan", data, dict))
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{error!r} for wan = {show(data)}") from None


def build_empty(config: WanConfig, attention: FPSAttention) -> Wan:
    """A model on the meta device, to be filled."""
    with torch.device("meta"):
        return Wan(config, attention)


def fill(
    model: Wan, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Put tensors, with their official names, in the place of a model's own; each is copied.

    dtype: as for `load_wan`. Raises ValueError for a tensor of whole numbers: quantised weights are not the model's.
    """
    for name, tensor in tensors:
        owner, _, leaf = name.rpartition(".")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of {tensor.dtype}, expected floating-point weights, not quantised ones")
        kept = torch.float32 if any(part in name for part in FP32) else dtype or tensor.dtype
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor.to(device, kept, copy=True)))


def save_wan(model: Wan, folder: str | Path, naming: Naming) -> None:
    """Save a model for stock tools. Raises ValueError as `export`."""
    as_instance("model", model, Wan)
    export(Weights(model.config, lambda: iter(model.state_dict().items())), folder, naming)


def export(weights: Weights, folder: str | Path, naming: Naming, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors, config.json and a checkpoint's attention; the folder appears whole or not at all.

    Raises ValueError when it exists or can't be written, and for another naming.
    """
    as_instance("weights", weights, Weights)
    folder = as_path("folder", folder)
    one_of("naming", naming, get_args(Naming))
    as_whole("shard_bytes", shard_bytes)
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder")
    rename = to_diffusers if naming == "diffusers" else str
    aside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_files(aside, ((rename(name), tensor) for name, tensor in weights.stream()), shard_bytes)
        describe = _diffusers_config if naming == "diffusers" else _official_config
        (aside / "config.json").write_text(json.dumps(describe(weights.config), indent=2) + "\n")
        if weights.trained is not None:
            # through the class, so that a preset's name in an older checkpoint becomes its numbers
            attention = asdict(FPSAttention.from_dict(weights.trained["attention"]))
            settings = {"wan": weights.trained["wan"], "attention": attention}
            (aside / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        aside.rename(folder)
    except OSError as error:
        raise ValueError(f"{folder} can't be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open_trained(path: Path, which: Which) -> Weights:
    held = read_training_checkpoint(path)
    state = held.get("current_model_state", held["state_dict"]) if which == "live" else held["state_dict"]
    state = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    try:
        config = _config_from(held["fps_flex"]["wan"])
        FPSAttention.from_dict(held["fps_flex"]["attention"])
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of this project ({error})") from None
    _check_shapes(path, {name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    return Weights(config, lambda: iter(state.items()), held["fps_flex"])


def _infer_config(path: Path, shapes: dict[str, Shape], folder: Path) -> WanConfig:
    """Sizes from the shapes; heads and eps, which no shape shows, from config.json, or else as in every Wan2.1."""
    try:
        said = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
        said = as_instance("config.json", said, dict)
        dim, channels, *patch = shapes["patch_embedding.weight"]
        heads = said.get("num_heads") or said.get("num_attention_heads") or dim // HEAD_DIM
        return WanConfig(
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            heads=heads,
            layers=len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
            channels=channels,
            text_dim=shapes["text_embedding.0.weight"][1],
            freq_dim=shapes["time_embedding.0.weight"][1],
            patch=tuple(patch),
            eps=said.get("eps", 1e-6),
        )
    except (OSError, KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        some = ", ".join(sorted(shapes)[:3])
        raise ValueError(f"{path} holds no Wan transformer ({error}): its tensors are {some}, ...") from None


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
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{path} is no text-to-video Wan transformer: {'; '.join(wrong[:8])}{more}")


def _expected_shapes(path: Path, config: WanConfig, most_layers: int) -> dict[str, Shape]:
    """Of each tensor of such a model. most_layers: more than these can't be there, and would take long to build."""
    try:
        if config.layers > most_layers:
            raise ValueError(f"{config.layers} layers in {most_layers} tensors")
        return {name: tuple(x.shape) for name, x in build_empty(config, FPSAttention()).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no text-to-video Wan transformer: no model is of its sizes ({reason})") from None


def _official_config(config: WanConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "patch_size": config.patch,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "in_dim": config.channels,
        "out_dim": config.channels,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "eps": config.eps,
    }


def _diffusers_config(config: WanConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": config.patch,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m fps_flex.weights", description=__doc__.splitlines()[0])
    convert = parser.add_subparsers(required=True, metavar="convert").add_parser(
        "convert", help="write a transformer's weights for stock tools"
    )
    convert.add_argument("source", help="safetensors (a file, an index or a folder), or a .ckpt of train.fit")
    convert.add_argument("folder", help="what to write; it must not exist")
    convert.add_argument("--format", required=True, choices=("diffusers", "official"), help="naming of the tensors")
    convert.add_argument("--weights", default="average", choices=("average", "live"), help="of a .ckpt (average)")
    options = parser.parse_args(args)
    try:
        export(open_weights(options.source, options.weights), options.folder, options.format)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {options.folder} in the {options.format} naming")


if __name__ == "__main__":
    main()
