"""The transformer that is trained: from which weights, in which dtypes, whole or by adapters; and its teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fps_flex import FPSAttention
from fps_flex.checks import some
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.adapters import Adapter, read_adapter
from fps_flex.wan.base import Base, build_base, check_frozen
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.fp8_ffn import fuse_feed_forwards
from fps_flex.wan.linears import Linears, compute_in_fp8
from fps_flex.wan.lora import ADAPTER, Lora, add_adapter, check_peft, load_adapter, without_adapter
from fps_flex.wan.merging import merge
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import Weights, build_empty, open_weights


@dataclass(frozen=True)
class Making:
    """How a transformer is made of weights.

    adapter: LoRA to start from, a file. sharded: on the meta device, until `shared_start` shares it out and fills it.
    """

    base: Base = "fp32"
    linears: Linears = "bf16"
    lora: Lora | None = None
    adapter: str | None = None
    sharded: bool = False

    def check(self, config: WanConfig) -> None:
        """Raises ValueError for what doesn't go together or isn't installed."""
        check_frozen(self.base, self.lora is not None)
        if self.lora:
            check_peft()
            self.lora.check_fits(config)
        elif self.adapter is not None:
            raise ValueError("model.adapter is what a LoRA starts from, and none is trained: name --model.lora.rank")
        if self.adapter is not None and not self.adapter.strip():
            raise ValueError("model.adapter is empty, expected a LoRA to start from, or null for none")
        if self.sharded and (self.base == "fp8" or (self.base == "bf16" and not self.lora)):
            why = "codes can't be shared out" if self.lora else "norms would be fp32, and a share is of one dtype"
            raise ValueError(f"parallel.shard is true, and model.base {self.base}: {why}; set parallel.shard false")


def open_start(checkpoint: str | None, wan: WanConfig) -> Weights | None:
    """The weights that training starts from; None for random ones.

    Raises ValueError where they are missing, of other sizes, or of two transformers.
    """
    if checkpoint is None:
        return None
    if not checkpoint.strip():
        raise ValueError("model.checkpoint is empty, expected weights to start from, or null for random ones")
    weights = open_weights(checkpoint).unrounded
    other = [
        f"{name} {value}, expected {getattr(wan, name)}"
        for name, value in asdict(weights.config).items()
        if value != getattr(wan, name)
    ]
    if other:
        raise ValueError(f"{checkpoint} holds a transformer of {', '.join(other)}: set model.wan to what it holds")
    return weights


def build_model(weights: Weights | None, wan: WanConfig, attention: FPSAttention, making: Making) -> Wan:
    """weights: None for random ones. Raises ValueError for an adapter that can't be started from."""
    start = read_adapter_start(making, weights, wan)
    if making.sharded or (weights is None and making.base == "fp32"):
        model = build_empty(wan, attention) if making.sharded else Wan(wan, attention)
        compute_in_fp8(model, making.linears)
    else:
        tensors = Wan(wan, attention).state_dict().items() if weights is None else weights.stream()
        device = torch.get_default_device()
        model = build_base(wan, attention, tensors, making.base, making.linears, device)
    if making.lora:
        add_adapter(model, making.lora)
        if start and not making.sharded:
            load_adapter(model, start)
    elif making.linears != "bf16":
        fuse_feed_forwards(model)
    return model


def build_teacher(model: Wan, weights: Weights, making: Making) -> Wan:
    """The dense, unquantised model: behind adapters on the same weights, else a frozen copy of the start in bf16."""
    dense = dense_attention(model.attention.block)
    if making.lora:
        return without_adapter(model, dense)
    if making.sharded:
        teacher = build_empty(model.config, dense)
    else:
        device = torch.get_default_device()
        teacher = build_base(model.config, dense, weights.stream(), "bf16", "bf16", device)
    teacher.requires_grad_(False)
    teacher.compiled, teacher.residual = model.compiled, model.residual
    return teacher


def read_adapter_start(making: Making, weights: Weights | None, wan: WanConfig) -> dict[str, Tensor] | None:
    """A LoRA as a model's adapters are named; None where none is started from.

    A factor alpha / rank other than this one's goes into `up`, in fp32.
    """
    path, lora = making.adapter, making.lora
    if not (path and lora):
        return None
    adapter = read_adapter(path)
    if path.endswith(".ckpt") and weights is not None:
        made_for = read_training_checkpoint(path)["fps_flex"].get("base", {})
        if made_for and made_for["fingerprint"] != (now := weights.fingerprint()):
            raise ValueError(
                f"{path} was trained on {made_for['path']} ({made_for['fingerprint']}), and model.checkpoint is of "
                f"other weights ({now}): name those"
            )
    if weights is not None:
        merge(weights, adapter, path=path)  # nothing is read: it says where a LoRA is of another model
    _check_start(path, adapter, wan, lora)
    named = {}
    for layer, low_rank in adapter.layers.items():
        named[f"{layer}.lora_A.{ADAPTER}.weight"] = low_rank.down
        named[f"{layer}.lora_B.{ADAPTER}.weight"] = low_rank.up.float() * (low_rank.alpha / lora.alpha)
    return named


def _check_start(path: str, adapter: Adapter, wan: WanConfig, lora: Lora) -> None:
    """Raises ValueError for a LoRA of other layers or another rank."""
    merging = "merge it into the weights (python -m fps_flex.weights convert, --format merged) and start from these"
    if adapter.differences:
        raise ValueError(f"{path} also changes {next(iter(adapter.differences))}, which no LoRA here does: {merging}")
    own = {f"blocks.{i}.{layer}" for i in range(wan.layers) for layer in lora.layers}
    for what, layers in (("adapts", adapter.layers.keys() - own), ("doesn't adapt", own - adapter.layers.keys())):
        if layers:
            raise ValueError(
                f"{path} {what} {some(sorted(layers))}, unlike model.lora.targets ({', '.join(lora.targets)}): set "
                f"these to what it adapts, or {merging}"
            )
    for layer, low_rank in adapter.layers.items():
        if low_rank.rank != lora.rank:
            raise ValueError(
                f"{path} is of rank {low_rank.rank} in {layer}, model.lora.rank is {lora.rank}: set it to that, or "
                f"{merging}"
            )


def record_of(checkpoint: str | None, weights: Weights | None, making: Making, distills: bool) -> dict[str, Any]:
    """What a checkpoint says of the weights that a LoRA was trained beside, or that were distilled from."""
    if weights is None or not (making.lora or distills):
        return {}
    lora = {"lora": describe_lora(making.lora)} if making.lora else {}
    return lora | {"base": {"path": checkpoint, "fingerprint": weights.fingerprint(), "dtype": making.base}}


def describe_lora(lora: Lora) -> dict[str, Any]:
    """As plain data."""
    return {"rank": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
