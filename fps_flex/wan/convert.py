"""A transformer's weights for stock tools, as a command: fps_flex.weights convert."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn, get_args

from torch import Tensor

from .adapter_files import AdapterFormat, export_adapter, settings_beside
from .adapters import holds_adapter, read_adapter
from .casting import Cast, DtypeName
from .export import SHARD_BYTES, Format, export, new_folder
from .hub import HUB
from .merging import merge
from .opened import Weights
from .weights import Which, open_weights

logger = logging.getLogger(__name__)

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
ADAPTER_FORMATS = get_args(AdapterFormat)
MERGED = "merged"  # the official naming, of a LoRA and its base
BAR_BYTES = 10**9  # weights that take long enough to show a bar


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no abbreviated options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all options)")


def parser() -> Parser:
    parser = Parser("python -m fps_flex.weights", description=__doc__.splitlines()[0], allow_abbrev=False)
    convert = parser.add_subparsers(required=True, metavar="convert").add_parser(
        "convert", help="write a transformer's weights for stock tools", allow_abbrev=False
    )
    convert.add_argument(
        "source",
        help="safetensors (a file, an index or a folder), hf:OWNER/NAME, or a .ckpt of train.fit; of a transformer or "
        "of a LoRA",
    )
    convert.add_argument("folder", help="what to write; it must not exist")
    convert.add_argument(
        "--format",
        required=True,
        choices=(*get_args(Format), *ADAPTER_FORMATS, MERGED),
        help="naming of the tensors; comfyui is one file. Of a LoRA: the LoRA alone (...-lora), or merged with its "
        "base, as official (merged does, too), diffusers or comfyui",
    )
    convert.add_argument("--weights", choices=get_args(Which), help="of a .ckpt (average)")
    convert.add_argument(
        "--base", help="transformer that a LoRA is merged with (for a .ckpt where it lay when it was trained)"
    )
    convert.add_argument("--dtype", choices=get_args(DtypeName), help="of the weights (as the source has them)")
    convert.add_argument(
        "--shard-size", help="the most in a file: 5GB, 500MB, a number of bytes, or none for one file (5GB)"
    )
    return parser


def shard_bytes(text: str | None, format: str) -> int | None:
    """Of an option's value. Raises ValueError for what is no size, and for a size where all is one file."""
    if text is not None and format in ADAPTER_FORMATS:
        raise ValueError(f"--shard-size is {text}, but a LoRA is one file: leave it out")
    if text is None:
        return None if format == "comfyui" else SHARD_BYTES
    if text.lower() == "none":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    size = int(float(match[1]) * UNITS.get(match[2].upper(), 0)) if match and len(text) < 30 else 0
    if size < 1:
        raise ValueError(f"--shard-size is {text[:60]!r}, expected 5GB, 500MB, a number of bytes, or none for one file")
    if format == "comfyui":
        raise ValueError(f"--shard-size is {text}, but ComfyUI's format is one file: leave it out")
    return size


def convert(options: argparse.Namespace) -> str:
    """What was written, in a few lines. Raises ValueError for what can't be read, meant or written."""
    size = shard_bytes(options.shard_size, options.format)
    if options.weights and not options.source.endswith(".ckpt"):
        raise ValueError(f"--weights is of a .ckpt of train.fit, and the source is {options.source}: leave it out")
    is_adapter = not options.source.startswith(HUB) and holds_adapter(options.source)
    if not is_adapter and (options.base or options.format in (*ADAPTER_FORMATS, MERGED)):
        given = "--base" if options.base else f"--format {options.format}"
        raise ValueError(f"{given} is for a LoRA, and {options.source} is a whole model: leave it out, or name a LoRA")
    if options.format in ADAPTER_FORMATS:
        return convert_adapter(options)
    naming: Format = "official" if options.format == MERGED else options.format
    folder = new_folder(options.folder, naming)
    weights, cast = open_source(options, is_adapter), Cast(options.dtype)
    if naming == "comfyui" and weights.config.head_dim != 128:
        logger.warning("ComfyUI takes all heads to be of 128 channels; these are of %d", weights.config.head_dim)
    with shown(weights.unrounded if options.dtype else weights) as reading:
        export(reading, folder, naming, size, cast)
    kinds = Counter(str(cast.spec(name, spec).dtype).removeprefix("torch.") for name, spec in weights.specs.items())
    counts = ", ".join(f"{count} tensors in {kind}" for kind, count in kinds.most_common())
    kept = "" if options.dtype else ", as they are read"
    lines = [f"{counts}{kept}", cast.describe(), f"wrote {options.folder} in the {naming} naming"]
    return "\n".join(filter(None, lines))


def open_source(options: argparse.Namespace, is_adapter: bool) -> Weights:
    """The weights to convert. Raises ValueError for a LoRA whose base isn't known."""
    which: Which = options.weights or "average"
    if not is_adapter or options.source.endswith(".ckpt"):
        return open_weights(options.source, which, options.base)
    if options.base is None:
        raise ValueError(
            f"{options.source} is a LoRA: name the transformer to merge it with by --base, or convert it alone with "
            f"--format {' or '.join(ADAPTER_FORMATS)}"
        )
    merged = merge(open_weights(options.base), read_adapter(options.source), path=options.source)
    settings = settings_beside(options.source) or merged.settings
    if settings and settings["wan"] != asdict(merged.config):
        raise ValueError(f"{options.source} was trained in another model ({settings['wan']}) than {options.base}")
    return replace(merged, settings=settings)


def convert_adapter(options: argparse.Namespace) -> str:
    """As `convert`, a LoRA into a LoRA."""
    if options.dtype == "float8_e4m3fn" or options.base:
        given, why = ("--base", "is merged with none") if options.base else ("--dtype", "isn't in float8")
        raise ValueError(f"{given} can't be used with --format {options.format}: a LoRA alone {why}")
    adapter, cast = read_adapter(options.source, options.weights or "average"), Cast(options.dtype)
    export_adapter(adapter, Path(options.folder), options.format, settings_beside(options.source), cast)
    ranks = ", ".join(map(str, sorted({layer.rank for layer in adapter.layers.values()})))
    whole = f", and whole differences of {len(adapter.differences)} tensors" if adapter.differences else ""
    wrote = f"wrote {options.folder} in the {options.format} naming"
    return "\n".join(filter(None, [f"{len(adapter.layers)} layers of rank {ranks}{whole}", cast.describe(), wrote]))


@contextmanager
def shown(weights: Weights) -> Iterator[Weights]:
    """The weights, with a bar of how much of them was read where that takes a while."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(spec.nbytes for spec in weights.specs.values())
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    hidden = total < BAR_BYTES or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=total)

        def read(name: str) -> Tensor:
            tensor = weights.read(name)
            progress.advance(task, weights.specs[name].nbytes)
            return tensor

        yield replace(weights, read=read)


def main(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fps_flex").setLevel(logging.INFO)
    try:
        print(convert(parser().parse_args(args)))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
