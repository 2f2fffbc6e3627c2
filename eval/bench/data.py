"""Reading a prepared data set."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from fps_flex.checks import as_whole, require
from train.data import VideoData
from train.index import EMPTY_PROMPT, CachedClip, Index, write_index

from ..timing import check_out, compare, report
from .sizes import CONFIGS, GRIDS, TEXT_TOKENS, Size, latent_shape


def data(size: Size = "1.3B", clips: int = 32, seconds: float = 10.0, out: Path | None = None) -> None:
    """Reading a prepared data set of random latents and text states, in this process, on one core.

    Args:
        size: of the model whose latents are read.
        clips: in the set.
        seconds: to read for.
        out: JSON file to write.
    """
    check_out(out)
    as_whole("clips", clips)
    require("seconds", seconds, above=0)
    torch.set_num_threads(1)
    config, grid = CONFIGS[size], GRIDS[size]
    with TemporaryDirectory() as folder:
        _write_random_set(Path(folder), clips, latent_shape(config, grid), config.text_dim)
        prepared = VideoData(folder, batch_size=1, workers=0)
        prepared.setup()
        batches = iter(prepared.train_dataloader())
        read, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            read += len(next(batches)["latents"])
        taken = (time.perf_counter() - started) / read
    row = {"model": size, "clips_read": read, "step_seconds": taken, "tokens_per_second": prod(grid) / taken}
    report(compare([row]), out, (*row,))


def _write_random_set(folder: Path, clips: int, latents: tuple[int, ...], text_dim: int) -> None:
    """One shard, with prompts as long as they can be."""
    (folder / "shards").mkdir()
    names = [f"clip{i}" for i in range(clips)]
    tensors = {f"{name}/latents": torch.randn(latents, dtype=torch.bfloat16) for name in names}
    tensors |= {f"{name}/text": torch.randn(TEXT_TOKENS, text_dim, dtype=torch.bfloat16) for name in names}
    save_file(tensors, folder / "shards/0.safetensors")
    save_file({"text": torch.zeros(1, text_dim)}, folder / EMPTY_PROMPT)
    cached = [CachedClip(name, "shards/0.safetensors", (81, 480, 832), "", name == "clip0", "") for name in names]
    write_index(Index(folder, 16.0, {}, {}, {}, TEXT_TOKENS, cached))
