"""Batches of captioned video for training and validation."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fps_flex.checks import require

from .cached import CachedClips, read_empty_text
from .chance import WithChance, to_device
from .common.atomic import digest_content
from .folder import VideoFolder, scan_folder
from .index import Index, is_prepared, read_index
from .order import HeldOut, Passes, Pick
from .sequences import place
from .shapes import MovingShapes
from .split import hold_out
from .stopping import obey_parent_alone, signals_blocked


class Loader(DataLoader):
    """Its processes end with this one, and not of a signal to all: their clips are needed until the run has saved."""

    def __iter__(self) -> Iterator[Any]:
        if self.num_workers:
            gc.collect()  # a forked process that frees one of our decoders waits for threads that it doesn't have
        with signals_blocked():
            return super().__iter__()


class VideoData(L.LightningDataModule):
    """Clips of one size: moving shapes, or those of a folder; or a prepared data set.

    Args:
        folder: what train.prepare made, or clips and their captions; none draws moving shapes instead. A prepared data
            set has its own sizes and rate, and holds its own clips out.
        frames: frames of a clip.
        fps: frames a second; clips of another rate are resampled.
        height: rows of pixels; clips of another size are scaled and cropped.
        width: columns of pixels.
        batch_size: clips per batch, on each device.
        workers: processes that load clips.
        train_clips: how many moving shapes there are to train on; a folder's clips are all used.
        val_clips: clips held out for validation; of a folder at most a fifth, but at least one, and none of a source
            video that is trained on; or those that its captions say are for it (split: val).
        seed: of the moving shapes, of the choice of the clips held out and of the order in training.

    Raises ValueError for a size below 1.

    taken: the clips of each size that the run has trained on, by all processes. positions: yields `taken` after each
    batch of the training loader.
    """

    def __init__(
        self,
        folder: str | None = None,
        frames: int = 81,
        fps: float = 16.0,
        height: int = 480,
        width: int = 832,
        batch_size: int = 1,
        workers: int = 2,
        train_clips: int = 100_000,
        val_clips: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.folder, self.frames, self.fps, self.height, self.width = folder, frames, fps, height, width
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.train_clips, self.val_clips = train_clips, val_clips
        for name in ("frames", "height", "width", "batch_size", "train_clips", "val_clips"):
            require(f"data.{name}", getattr(self, name), above=0)
        require("data.fps", fps, above=0, most=1000)
        require("data.workers", workers, least=0)
        require("data.seed", seed, least=0, below=2**32)
        if folder == "":
            raise ValueError("data.folder is empty, expected a folder, or null for moving shapes")
        self.taken: list[int] | None = None
        self.positions: Iterator[list[int]] = iter(())
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None
        self.index: Index | None = None
        self.empty_text: Tensor | None = None

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return self.frames, self.height, self.width

    def sizes(self) -> list[tuple[int, int, int]]:
        """Of all clips; one size but for a prepared data set."""
        return self.index.sizes() if self.index else [self.size]

    def buckets(self) -> list[list[int]]:
        """Indices of the clips of each size that is trained on."""
        return self.train_set.buckets() if self.index else [list(range(len(self.train_set)))]

    def setup(self, stage: str | None = None) -> None:
        """Raises ValueError when the folder can't be used."""
        if self.train_set is not None:
            return
        if self.folder is None:
            self.train_set = MovingShapes(self.train_clips, *self.size, seed=2 * self.seed)
            self.val_set = MovingShapes(self.val_clips, *self.size, seed=2 * self.seed + 1)
        elif is_prepared(Path(self.folder)):
            self._use_prepared(read_index(Path(self.folder)))
        else:
            self._split(Path(self.folder))

    def _use_prepared(self, index: Index) -> None:
        """Its own sizes and rate count, and what it holds out; a clip that is alone is trained on all the same."""
        self.index, self.fps = index, index.fps
        self.frames, self.height, self.width = index.common_size()
        self.train_set, self.val_set = (CachedClips(index, held_out) for held_out in (False, True))
        self.train_set = self.train_set if len(self.train_set) else self.val_set
        self.empty_text = read_empty_text(index)

    def _split(self, folder: Path) -> None:
        """A folder of one clip validates on the clip it trains on."""
        parts = hold_out(scan_folder(folder, self.frames, self.fps), self.val_clips, self.seed)
        self.val_set, self.train_set = (
            VideoFolder(folder, part, self.frames, self.fps, self.height, self.width) for part in parts
        )

    def clips(self) -> str:
        """Which clips are trained on and which are held out, in a few words that differ where any clip does."""
        if self.folder is None:
            return f"{self.train_clips} and {self.val_clips} moving shapes of seed {self.seed}"
        digest = digest_content("".join(json.dumps(part.names()) for part in (self.train_set, self.val_set)))
        return f"{len(self.train_set)} and {len(self.val_set)} held out ({digest[:12]})"

    def captions(self) -> str:
        """A digest of what the clips' captions say; none where they are drawn."""
        if self.folder is None:
            return ""
        prompts = [clip.prompt for part in (self.train_set, self.val_set) for clip in part.clips]
        return digest_content(json.dumps(prompts))[:12]

    def _with_chance(self, dataset: Dataset) -> Dataset:
        """What a module is trained on; without a trainer the clips alone."""
        module = self.trainer.lightning_module if self.trainer else None
        if module is None:
            return dataset
        encoded = None if self.index else (module.codec.channels, *module.codec.latent_size(self.size))
        return WithChance(dataset, module.seed, encoded)

    def train_dataloader(self) -> DataLoader:
        """Full batches without end, however few the clips: each batch size would compile anew.

        A resumed run goes on with the clips after those of its last optimizer step.
        """
        rank, world = self._place()
        passes = Passes(self.buckets(), self.batch_size, self.seed, rank, world, self.taken)
        self.positions = passes.positions()
        return self._loader(self.train_set, passes)

    def val_dataloader(self) -> DataLoader:
        rank, world = self._place()
        batch_size = self.batch_size if len(self.sizes()) == 1 else 1
        return self._loader(self.val_set, HeldOut(len(self.val_set), batch_size, rank, world))

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        return to_device(batch, device)

    def _place(self) -> tuple[int, int]:
        """This process's rank among those that take clips of their own, and how many there are."""
        return place(self.trainer) if self.trainer else (0, 1)

    def _loader(self, dataset: Dataset, batches: Sampler[list[Pick]]) -> DataLoader:
        return Loader(
            self._with_chance(dataset),
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=obey_parent_alone,
        )
