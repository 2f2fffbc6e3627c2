"""Fit a linear codec to the clips of a folder that are trained on: principal components of boxes of pixels.

python -m train.codec --folder CLIPS --out CODEC.safetensors --channels 16
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import torch

from fps_flex.checks import Triple, as_triple, at_home, require
from fps_flex.wan.codecs import box_grid
from fps_flex.wan.linear_codec import METADATA, Components, LinearCodec

from .common.atomic import beside, check_ours, digest_content, digest_file
from .common.console import cli_errors, run_command, writable
from .common.pictures import draw_contact_sheet
from .common.videos import in_range
from .common.work import progress_bar
from .data import VideoData
from .folder import VideoFolder
from .index import is_prepared
from .moments import Moments, find_components, psnr_by_channels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

TABLE = (4, 8, 12, 16, 24, 32, 48, 64, 96)  # channels whose PSNR is told
DRAWN = 3  # clips of the picture


def main(
    folder: str,
    out: str,
    box: tuple[int, int, int] = (2, 4, 4),
    channels: int = 16,
    clips: int = 40,
    scaling: Literal["unit", "one"] = "unit",
    frames: int = 32,
    fps: float = 16.0,
    height: int = 128,
    width: int = 256,
    val_clips: int = 64,
    seed: int = 0,
) -> None:
    """Fit a codec, say what it loses by channels, and draw clips above what is left of them.

    Args:
        folder: clips and their captions, as train.fit reads them; those it holds out are not fitted to.
        out: file of the codec, CODEC.safetensors; a picture is drawn beside it.
        box: frames, rows and columns of pixels of a latent.
        channels: numbers that are kept of a box.
        clips: clips that are fitted to, chosen by chance from the seed.
        scaling: unit makes the variance of each channel one, one divides all channels by the same number.
        frames: frames of a clip, as of frames to width in the training.
        fps: frames a second.
        height: rows of pixels.
        width: columns of pixels.
        val_clips: clips held out, by which the PSNR is measured.
        seed: of the choice of the clips, as in the training.
    """
    size, box = (frames, height, width), as_triple("--box", box)
    require("--clips", clips, least=1)
    require("--channels", channels, least=1, most=3 * box[0] * box[1] * box[2])
    folder = str(at_home(folder))
    data = VideoData(folder, frames, fps, height, width, val_clips=val_clips, seed=seed)
    box_grid(size, box)
    path = at_home(out)
    if path.suffix != ".safetensors":
        raise ValueError(f"--out is {out}, expected a file CODEC.safetensors")
    if is_prepared(Path(folder)):
        raise ValueError(f"{folder} is a prepared data set, which holds no pixels: give the folder of clips it is of")
    with writable(path.parent):
        check_ours(path)
        check_ours(path.with_suffix(".png"))
        data.setup()
        fit(path, data, box, channels, clips, scaling, seed)


def fit(path: Path, data: VideoData, box: Triple, channels: int, clips: int, scaling: str, seed: int) -> None:
    order = torch.randperm(len(data.train_set), generator=torch.Generator().manual_seed(seed)).tolist()[:clips]
    fitted, names = _measure(data.train_set, order, box, "fit")
    held_out, _ = _measure(data.val_set, range(len(data.val_set)), box, "measure")
    components = find_components(fitted, channels, box, scaling)
    psnr = psnr_by_channels(fitted, held_out)
    record = {
        "kind": LinearCodec.kind, "box": box, "channels": channels, "scaling": scaling, "clips": len(order),
        "held_out_clips": len(data.val_set), "held_out_psnr": round(psnr[channels - 1], 3),
        "data": _digest_clips(Path(data.folder), names),
    }  # fmt: skip
    _write(path, components, record)
    _draw(path, data.val_set)
    print(describe(path, data, psnr, channels, len(order)))


def _measure(part: VideoFolder, indices: Any, box: Triple, what: str) -> tuple[Moments, list[str]]:
    """Moments of the boxes of some clips, and the clips' names."""
    moments, names = Moments.of_none(box), []
    with progress_bar() as progress:
        for index in progress.track(indices, description=what):
            item = part[index]
            moments.add(in_range(item["video"]))
            names.append(item["name"])
    return moments, names


def _digest_clips(folder: Path, names: list[str]) -> str:
    return digest_content(json.dumps([[name, digest_file(folder / name)] for name in names]))[:16]


def _write(path: Path, components: Components, record: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with beside(path) as temporary:
        save_file(components.tensors(), temporary, metadata={METADATA: json.dumps(record)})


def _draw(path: Path, part: VideoFolder) -> None:
    """Clips above what the codec leaves of them."""
    codec = LinearCodec(str(path))
    items = [part[i] for i in range(min(DRAWN, len(part)))]
    videos: Float[Tensor, "b 3 f h w"] = in_range(torch.stack([item["video"] for item in items]))
    pairs = torch.stack([videos, codec.decode(codec.encode(videos)).clamp(-1, 1)], 1).flatten(0, 1)
    captions = [text for item in items for text in (item["prompt"], f"decoded from {codec.channels} channels")]
    draw_contact_sheet(path.with_suffix(".png"), pairs, captions, columns=6)


def describe(path: Path, data: VideoData, psnr: list[float], channels: int, clips: int) -> str:
    """psnr: by channels, of the clips held out."""
    shown = sorted({k for k in (*TABLE, channels, len(psnr)) if k <= len(psnr)})
    lines = [f"{k:8}  {psnr[k - 1]:5.1f} dB{'  <- written' if k == channels else ''}" for k in shown]
    head = f"fitted to {clips} of {len(data.train_set)} clips; PSNR of the {len(data.val_set)} held out"
    options = f"--model.codec LinearCodec --model.codec.path {quote(str(path))} --model.wan.channels {channels}"
    return "\n".join([head, "channels", *lines, f"look at {path.with_suffix('.png')}; then: {options}"])


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; nothing was written"):
        run_command(main, args, as_positional=False, description=__doc__.splitlines()[0], prog="python -m train.codec")


if __name__ == "__main__":
    command(sys.argv[1:])
