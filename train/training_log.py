"""What a training log says beside the loss: speed, memory, learning rate, gradient, and the loss by regime and noise.

Everything is of all processes, and of all clips since the last line or since the run began or went on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fps_flex.checks import Triple
from fps_flex.wan.flops import densities, forward_flops, training_flops

from .module import FlowModule
from .sequences import place

SHOWN = ("train/tokens_per_second", "train/mfu")  # beside the progress bar
NOISE_BINS = 4  # of noise levels from 0 to 1
PEAKS = {  # dense bf16 products with fp32 sums, in 1e12 a second, by a part of the GPU's name: the makers' data sheets
    "GB200": 2500, "B200": 2250, "H200": 989, "GH200": 989, "H800": 989, "H100 NVL": 835, "H100 PCIe": 756,
    "H100": 989, "H20": 148, "A100": 312, "A800": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A10": 125,
    "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 209, "RTX 4090": 165, "RTX 3090": 71, "MI300X": 1307,
}  # fmt: skip
VARIANTS = {"MIG", "Laptop", "Ti", "D"}


def peak_flops(device_name: str) -> float | None:
    """Operations a second that a GPU can do in bf16; None of one that isn't known, such as a part or a variant."""
    words = device_name.replace("-", " ").split()
    if VARIANTS & set(words):
        return None
    known = (value for part, value in PEAKS.items() if _holds(words, part.split()))
    return next((1e12 * value for value in known), None)


def _holds(words: list[str], part: list[str]) -> bool:
    """Whether these words are among the others, in order: an L4 is no L40."""
    return any(words[i : i + len(part)] == part for i in range(len(words)))


class Work(NamedTuple):
    """What one batch was. losses, sigma: of each clip. grid: tokens on (T, H, W) of a clip."""

    losses: Tensor
    sigma: Tensor
    grid: Triple
    text_tokens: int
    seconds: float


class TrainingLog(Callback):
    """Logs them each time that train/loss is logged.

    Seconds are from asking for a batch to its end: validation, sample videos and saving are not in them.
    """

    def __init__(self) -> None:
        self._batches: list[Work] = []
        self._step, self._lr, self._peak = 0, 0.0, None

    def on_train_start(self, trainer: L.Trainer, pl_module: FlowModule) -> None:
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type.upper()}"
        self._step, self._peak = trainer.global_step, peak_flops(name)
        if self._peak is None and trainer.is_global_zero:
            print(f"train/mfu is left out: how fast {name} could be is not known here", flush=True)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: FlowModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before the warm-up moves it on."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: FlowModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seen = (outputs[name] for name in ("losses", "sigma", "grid", "text_tokens"))
        self._batches.append(Work(*seen, time.perf_counter() - trainer.fit_loop.epoch_loop.began))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % trainer.log_every_n_steps == 0:
            values = self._values(trainer, pl_module)
            for log in trainer.loggers:  # Lightning's own way repeats the last value of what has none now
                log.log_metrics(values, step=self._step - 1)  # as it counts them
            pl_module.log_dict({x: values[x] for x in SHOWN if x in values}, prog_bar=True, logger=False, batch_size=1)

    def _values(self, trainer: L.Trainer, module: FlowModule) -> dict[str, float]:
        """All processes must ask; forgets the batches."""
        device, sequence = trainer.strategy.root_device, trainer.world_size // place(trainer)[1]
        own = torch.tensor(list(tally(self._batches, module)), dtype=torch.float64, device=device)
        self._batches.clear()
        sums = trainer.strategy.reduce(own, reduce_op="sum").tolist()
        values = speed(sums[:3], trainer.world_size, sequence, self._peak) | means(sums[3:])
        values |= {"train/lr": self._lr, "train/grad_norm": float(module.grad_norm)}
        if device.type == "cuda":
            peak = torch.tensor(torch.cuda.max_memory_allocated(device) / 1e9, device=device)
            values["train/peak_gb"] = float(trainer.strategy.reduce(peak, reduce_op="max"))
        return values


def tally(batches: list[Work], module: FlowModule) -> Iterator[float]:
    """Tokens, operations and seconds; then of each regime, and of each bin of noise levels, clips and their loss."""
    attention = module.model.attention
    sigma = torch.cat([batch.sigma for batch in batches]).cpu()  # Lightning's own DDP has moved it to the GPU
    losses = torch.cat([batch.losses for batch in batches]).double().cpu()  # waits for a GPU, once a line
    regimes = attention.step_schedule.regime_index(sigma)
    yield sum(float(len(batch.sigma) * torch.Size(batch.grid).numel()) for batch in batches)
    yield sum(batch_flops(module, batch) for batch in batches)
    yield sum(batch.seconds for batch in batches)
    bins = (sigma * NOISE_BINS).long().clamp(max=NOISE_BINS - 1)
    for index, count in ((regimes, len(attention.step_schedule.regimes)), (bins, NOISE_BINS)):
        for i in range(count):
            yield from (float((index == i).sum()), float(losses[index == i].sum()))


def batch_flops(module: FlowModule, batch: Work) -> float:
    """Of a step on its clips, their teacher's dense passes included."""
    tokens, config = torch.Size(batch.grid).numel(), module.model.config
    dense = forward_flops(config, tokens, batch.text_tokens).total if module.teachers else 0.0
    computed = densities(module.model.attention, batch.grid, batch.sigma, config.layers).tolist()
    forward = [forward_flops(config, tokens, batch.text_tokens, share) for share in computed]
    return sum(training_flops(x, frozen=module.making.lora is not None) + dense for x in forward)


def speed(sums: list[float], processes: int, sequence: int, peak: float | None) -> dict[str, float]:
    """sums: tokens, operations and seconds of all processes, of which each `sequence` count the same clips. peak: of
    one GPU.
    """
    tokens, operations, seconds = sums
    values = {"train/tokens_per_second": tokens / sequence / (seconds / processes)}
    return values | ({"train/mfu": operations / sequence / (seconds * peak)} if peak else {})


def means(sums: list[float]) -> dict[str, float]:
    """sums: clips and loss of each regime, then of each bin. A loss of no clips is left out."""
    pairs = list(zip(sums[::2], sums[1::2], strict=True))
    regimes, bins = pairs[:-NOISE_BINS], pairs[-NOISE_BINS:]
    clips = sum(count for count, _ in regimes)
    names = [f"noise/{i / NOISE_BINS:g}-{(i + 1) / NOISE_BINS:g}" for i in range(NOISE_BINS)]
    values = {f"regime/{i}/share": count / clips for i, (count, _) in enumerate(regimes)}
    values |= {f"regime/{i}/loss": loss / count for i, (count, loss) in enumerate(regimes) if count}
    return values | {f"{name}/loss": loss / count for name, (count, loss) in zip(names, bins, strict=True) if count}
