"""Training a Wan transformer with FPSAttention: the flow loss, the optimizer with warm-up, and validation."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from fps_flex import FPSAttention, Plan
from fps_flex.checks import Triple, one_of, require
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.base import Base
from fps_flex.wan.codecs import Codec, TextEncoder
from fps_flex.wan.config import Residual
from fps_flex.wan.experts import ALL, as_levels
from fps_flex.wan.flow import (
    add_noise,
    distill_loss,
    euler_sample,
    flow_loss,
    guided_velocity,
    noise_level,
    spread_noise_levels,
    velocity_error,
)
from fps_flex.wan.linears import Linears
from fps_flex.wan.lora import Lora, trained
from fps_flex.wan.streamed import renamed

from .building import Making, build_model, build_teacher, open_start, record_of
from .common.videos import in_range
from .optimizers import OptimizerName, build_optimizer, check_optimizer, pack, unpack
from .order import PADDING
from .sequences import InSequences
from .sharding import is_finite_everywhere, whole
from .shared_start import Start, share_out

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


Objective = Literal["flow", "distill"]


class NotFinite(RuntimeError):
    """The loss, its gradient or the weights became infinite or NaN."""


class FlowModule(L.LightningModule):
    """Rectified flow on a Wan transformer; the defaults are the paper's (Table 8).

    Args:
        wan: sizes of the transformer.
        attention: tiles, schedule, quantisation and engine of its self-attention.
        codec: video <-> latents.
        text: prompts -> text states.
        checkpoint: weights to start from: Wan2.1's in the official or the diffusers naming, a file or a folder, or a
            .ckpt of an earlier run; none starts from random ones.
        lr: learning rate after the warm-up.
        warmup_steps: steps over which the learning rate rises from 0.
        weight_decay: of AdamW.
        betas: of AdamW.
        eps: of AdamW.
        shift: of the noise levels, in training, validation and sampling.
        logit_mean: of the logits of the noise levels before the shift; more trains more on noise.
        logit_std: of the same; more trains more on both ends.
        noise_levels: the lowest and the highest that are trained and validated on, from 0 to 1; none takes those of
            `checkpoint`: of one of two experts (Wan2.2 A14B) its side of their boundary, else all.
        text_dropout: share of prompts replaced by an empty one in training, for guidance.
        val_levels: noise levels at which each validation clip is scored.
        checkpointing: recompute activations in the backward pass to save memory.
        compiled: run the transformer's blocks through torch.compile; made for GPUs.
        lora: train adapters beside frozen weights in place of the weights.
        adapter: LoRA to start from, in any of the usual namings or a .ckpt of such a run; none starts as the base.
        base: dtype of the weights: fp32, bf16, or, of a LoRA's frozen ones, fp8 (e4m3 with a scale per row).
        linears: what the blocks' linear layers compute in: bf16 (the precision's own), or on a GPU fp8-ffn, fp8.
        objective: flow, or distill: towards the velocity of the dense, unquantised model that training starts from.
        flow_weight: of the flow loss beside distillation.
        optimizer: adamw, or adamw8bit, whose momenta take a quarter of the memory.
        offload_activations: what blocks are recomputed from waits in the host's memory.
        offload_optimizer: adamw's momenta wait in the host's memory, and come to the GPU parameter by parameter.
        sharded: set by --parallel.
        residual: what runs from block to block, and the head: in the dtype of the computation (compute: bf16 under
            bf16-mixed), or in fp32 as in the official model, which rounds less and keeps twice the bytes per block;
            none takes fp32 up to the size of 1.3B, else compute (docs.make.residual says what each costs).

    Raises ValueError for a value out of range or unknown, and when codec, text or checkpoint don't fit the transformer.

    average: the averaged weights, where a callback keeps them; validation and sampling use them. start: what
    `configure_model` fills the shares with, where processes share the model. before_step: called
    when the gradients of an optimizer step are there. is_sound: whether weights, optimizer and average belong to one
    step, as they do but for a moment of each. grad_norm: of the last step's gradients, before they are clipped.
    """

    def __init__(
        self,
        wan: WanConfig,
        attention: FPSAttention,
        codec: Codec,
        text: TextEncoder,
        checkpoint: str | None = None,
        lr: float = 5e-6,
        warmup_steps: int = 200,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        shift: float = 5.0,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        noise_levels: tuple[float, float] | None = None,
        text_dropout: float = 0.1,
        val_levels: int = 4,
        checkpointing: bool = False,
        compiled: bool = False,
        residual: Residual | None = None,
        lora: Lora | None = None,
        adapter: str | None = None,
        base: Base = "fp32",
        linears: Linears = "bf16",
        objective: Objective = "flow",
        flow_weight: float = 0.0,
        optimizer: OptimizerName = "adamw",
        offload_activations: bool = False,
        offload_optimizer: bool = False,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        for name, value, bounds in (
            ("lr", lr, {"least": 0}),
            ("warmup_steps", warmup_steps, {"least": 0}),
            ("weight_decay", weight_decay, {"least": 0}),
            ("betas[0]", betas[0], {"least": 0, "below": 1}),
            ("betas[1]", betas[1], {"least": 0, "below": 1}),
            ("eps", eps, {"above": 0}),
            ("shift", shift, {"above": 0}),
            ("logit_mean", logit_mean, {}),
            ("logit_std", logit_std, {"above": 0}),
            ("text_dropout", text_dropout, {"least": 0, "most": 1}),
            ("val_levels", val_levels, {"least": 1}),
            ("flow_weight", flow_weight, {"least": 0}),
        ):
            require(f"model.{name}", value, **bounds)
        for part, given, name in ((codec, codec.channels, "channels"), (text, text.dim, "text_dim")):
            if given != getattr(wan, name):
                raise ValueError(
                    f"the {type(part).__name__} gives {given}, expected the transformer's {name} = {getattr(wan, name)}"
                )
        check_optimizer(optimizer, eps, sharded, offload_optimizer)
        check_objective(objective, flow_weight, attention.is_dense and linears == "bf16")
        if offload_activations and not checkpointing:
            raise ValueError("model.offload_activations is of recomputed blocks: set model.checkpointing true too")
        self.making = Making(base, linears, lora, adapter, sharded)
        self.making.check(wan)
        weights = self.open_start(checkpoint, wan)
        if objective == "distill" and weights is None:
            raise ValueError("model.objective distill learns from the weights it starts from: name model.checkpoint")
        self.noise_levels = as_levels("model.noise_levels", noise_levels or (weights.noise_levels if weights else ALL))
        self.start = Start(weights, self.making, torch.get_rng_state()) if sharded else None
        self.model = build_model(weights, wan, attention, self.making)
        self.model.checkpointing, self.model.compiled, self.model.offload = checkpointing, compiled, offload_activations
        self.model.residual = residual
        self.base_record = record_of(checkpoint, weights, self.making, objective == "distill")
        self.strict_loading = lora is None  # a checkpoint of adapters holds these alone
        # in a tuple, out of what Lightning saves and counts
        self.teachers = (build_teacher(self.model, weights, self.making),) if objective == "distill" else ()
        self.objective, self.flow_weight = objective, flow_weight
        self.optimizer_name, self.offload_optimizer = optimizer, offload_optimizer
        self.codec, self.text = codec, text
        self.lr, self.warmup_steps, self.weight_decay, self.betas, self.eps = lr, warmup_steps, weight_decay, betas, eps
        self.shift, self.logit_mean, self.logit_std = shift, logit_mean, logit_std
        self.text_dropout, self.val_levels = text_dropout, val_levels
        self.average: Wan | None = None
        self.before_step: Callable[[], None] = lambda: None
        self.grad_norm = torch.zeros(())
        self.is_sound = True
        # of the batches of one optimizer step, and of the clips of one validation; in fp64 their order doesn't matter
        self.train_loss, self.val_loss, self.val_error = (
            MeanMetric(nan_strategy="disable").set_dtype(torch.float64) for _ in range(3)
        )
        self._clips: list[tuple[str, Tensor]] = []  # of one optimizer step, each with its loss

    open_start = staticmethod(open_start)

    def saved_names(self) -> list[str]:
        """What of the transformer a checkpoint holds: all, or of a LoRA the adapter."""
        return list(trained(self.model) if self.making.lora else self.model.state_dict())

    def configure_model(self) -> None:
        """Lightning calls it once the processes have found each other."""
        strategy = self.trainer.strategy
        for part in filter(None, (self.model, self.average, *self.teachers)):
            if isinstance(strategy, InSequences):
                strategy.join(part)
        if self.start:
            share_out(self.start, strategy, self.model, self.average, self.teachers)
            self.start = None

    def on_fit_start(self) -> None:
        for teacher in self.teachers:
            teacher.to(self.device)

    @property
    def shown(self) -> Wan:
        """The model that validation and sampling use."""
        return self.model if self.average is None else self.average

    def plan(self, size: tuple[int, int, int], sigma: Float[Tensor, " b"]) -> Plan:
        """The attention plan for videos of so many frames, rows, columns. Raises ValueError where sizes don't fit."""
        return self.model.attention.plan(self.grid(size), sigma)

    def grid(self, size: tuple[int, int, int]) -> Triple:
        """Tokens on (T, H, W) of videos of so many frames, rows, columns. Raises ValueError where sizes don't fit."""
        return self.model.config.grid(self.codec.latent_size(size))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The loss, and what a training log says more of: each clip's loss and noise level, what a pass is over."""
        latents, text = self._encode(batch, batch["uniform"] < self.text_dropout)
        drawn = (self.shift, self.logit_mean, self.logit_std, self.noise_levels)
        sigma = torch.cat([noise_level(normal[None], *drawn) for normal in batch["normal"]])
        losses, _ = self._losses(self.model, latents, text, sigma, batch["noise"])
        self._note(batch, losses.detach())
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log("train/loss", self.train_loss.compute().float(), prog_bar=True, batch_size=len(latents))
        grid = self.model.config.grid(latents.shape[2:])
        seen = {"losses": losses.detach(), "sigma": sigma, "grid": grid, "text_tokens": text.shape[1]}
        return {"loss": losses.mean(), **seen}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss at `val_levels` noise levels spread as training draws them, with the same noise every time."""
        latents, text = self._encode(batch, torch.zeros(len(batch["prompt"]), dtype=torch.bool))
        counts = (batch["pass"] != PADDING).to(self.device)
        drawn = (self.shift, self.logit_mean, self.logit_std)
        levels = spread_noise_levels(self.val_levels, *drawn, self.noise_levels)
        for sigma in levels:
            losses, errors = self._losses(self.shown, latents, text, sigma.expand(len(latents)), batch["noise"])
            self.val_loss.update(losses[counts])  # torchmetrics forgets weights where NaN is to stay NaN
            if errors is not None:
                self.val_error.update(errors[counts])
        self.log("val/loss", self.val_loss, prog_bar=True, batch_size=len(latents))
        if self.teachers:
            self.log("val/error", self.val_error, prog_bar=True, batch_size=len(latents))

    @property
    def seed(self) -> int:
        """Of the run. With a clip and a pass it says all that is drawn, whatever the batch and the process."""
        return torch.initial_seed()

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        size: tuple[int, int, int],
        steps: int,
        guidance: float,
        seed: int = 0,
        after_step: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "b 3 f h w"]:
        """Videos of `size` (frames, rows, columns) in -1 to 1. guidance: 1 follows the prompt, more stresses it."""
        shape = (len(prompts), self.codec.channels, *self.codec.latent_size(size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        text, no_text = (self.text(x, self.device) for x in (prompts, [""] * len(prompts)))

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            return guided_velocity(lambda states: self.shown(x, 1000 * sigma, states), text, no_text, guidance)

        for latents in euler_sample(velocity, noise, steps, self.shift):  # noqa: B007 - the last is decoded
            after_step()
        return self.codec.decode(latents).clamp(-1, 1)

    def configure_optimizers(self) -> dict[str, Any]:
        how = (self.lr, self.betas, self.eps, self.weight_decay, self.offload_optimizer)
        optimizer = build_optimizer(self.optimizer_name, trained(self.model).values(), *how)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._warm(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """By norm, once that is known to be finite: the last look before a step, which a NaN would carry everywhere.

        (Lightning's own refuses a fused optimizer under autocast, though bf16 has no scaled gradients.)
        Raises NotFinite, on all processes, where it isn't.
        """
        parameters = [x for x in self.model.parameters() if x.grad is not None]
        norm = torch.nn.utils.get_total_norm([x.grad for x in parameters])
        self.grad_norm = whole(norm)
        finite = bool(self.grad_norm.isfinite())  # waits for all gradients, of all processes
        self.before_step()
        if not finite:
            raise NotFinite(self._what_is_not_finite())
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        self._clips.clear()
        self.train_loss.reset()
        self.is_sound = False

    def check_weights(self) -> None:
        """Raises NotFinite, on all processes, where a step left them so."""
        if not is_finite_everywhere(trained(self.model).values()):
            raise NotFinite(f"the weights are not finite after step {self.global_step}: lower model.lr")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a reader needs to build the same model and to sample from it, as plain data.

        `state_dict` holds the averaged weights, and `current_model_state` those in training; where no average is kept,
        `state_dict` holds these, and they are there once. Of a LoRA the adapter's alone.
        """
        data = self.trainer.datamodule
        checkpoint["fps_flex"] = checkpoint.get("fps_flex", {}) | {
            "wan": asdict(self.model.config),
            "attention": asdict(self.model.attention),
            "residual": self.model.residual,
            "shift": self.shift,
            "noise_levels": list(self.noise_levels),
            "step": self.global_step,
            "codec": self.codec.spec() | self.codec.identity(),
            "text": self.text.spec(),
            "clip": {"frames": data.frames, "height": data.height, "width": data.width, "fps": data.fps},
            **self.base_record,
        }
        state = checkpoint["state_dict"]
        kept = self.saved_names()
        live, average = ({x: state[x] for x in (part + name for name in kept) if x in state} for part in PARTS)
        checkpoint["state_dict"] = live
        if average:
            checkpoint |= {"state_dict": renamed(average, "average.", "model."), "current_model_state": live}
        for optimizer in checkpoint["optimizer_states"]:
            optimizer["state"] = pack(optimizer["state"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse; and the optimizer takes its settings from this configuration, its state from the checkpoint.

        An average that wasn't kept there begins as the weights; one that isn't kept any more is left out.
        """
        average = checkpoint["state_dict"]
        live = checkpoint.get("current_model_state", average)
        if self.average is not None:
            live = ChainMap(renamed(average, "model.", "average."), live)
        checkpoint["state_dict"] = live
        step = checkpoint["global_step"]
        (optimizer,) = checkpoint["optimizer_states"]
        optimizer["state"] = unpack(optimizer["state"])
        for group in optimizer["param_groups"]:
            lr = self.lr * self._warm(step)
            lr = torch.tensor(lr) if isinstance(group["lr"], Tensor) else lr  # as torchao keeps it
            group |= {"lr": lr, "initial_lr": self.lr, "betas": self.betas, "eps": self.eps}
            group["weight_decay"] = self.weight_decay
        for schedule in checkpoint["lr_schedulers"]:
            schedule |= {"base_lrs": [self.lr], "_last_lr": [self.lr * self._warm(step)]}

    def _encode(self, batch: dict[str, Any], dropped: Bool[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """Latents [B, C, TF, TH, TW] and text states [B, L, E], with an empty prompt where it is dropped.

        A prepared data set holds both; clips are encoded here.
        """
        if "latents" in batch:
            empty = self.trainer.datamodule.empty_text.to(batch["text"])
            text = torch.where(dropped[:, None, None].to(self.device), empty, batch["text"])
            return batch["latents"].float(), text
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped.tolist(), batch["prompt"], strict=True)]
        return self.codec.encode(in_range(batch["video"])), self.text(prompts, self.device)

    def _losses(
        self, model: Wan, latents: Tensor, text: Tensor, sigma: Tensor, noise: Tensor
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"] | None]:
        """Of each clip; and in validation how far its velocity is from the teacher's, where there is one.

        sigma: on the CPU, where processes that share a clip ask for its regime.
        """
        noisy, timestep = add_noise(latents, noise, sigma.to(latents.device, non_blocking=True)), 1000 * sigma
        with torch.no_grad():  # first, while the model keeps nothing for its backward yet
            targets = [teacher(noisy, timestep, text) for teacher in self.teachers]
        velocity = model(noisy, timestep, text)
        flow = flow_loss(velocity, latents, noise)
        if not targets:
            return flow, None
        errors = None if self.training else velocity_error(velocity, targets[0])
        return distill_loss(velocity, targets[0]) + self.flow_weight * flow, errors

    def _note(self, batch: dict[str, Any], losses: Float[Tensor, " b"]) -> None:
        """Remember the clips of a step, for the line that a loss or gradient that isn't finite ends in."""
        self.train_loss.update(losses)
        for name, source, loss in zip(batch["name"], batch["source"], losses, strict=True):
            self._clips.append((f"{name} ({source})", loss))

    def _what_is_not_finite(self) -> str:
        """All processes' clips of the step: those whose loss isn't finite, or else all."""
        clips = [(clip, loss.item()) for clip, loss in self._clips]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, clips)
            clips = [clip for part in everywhere for clip in part]
        bad = [(clip, loss) for clip, loss in clips if not isfinite(loss)]
        what = f"train/loss is {bad[0][1]}" if bad else "the gradient is not finite, though train/loss is,"
        return f"{what} at step {self.global_step} on {', '.join(dict.fromkeys(clip for clip, _ in bad or clips))}"

    def _warm(self, step: int) -> float:
        """The share of the learning rate at a step of the warm-up."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


PARTS = ("model.", "average.")


def check_objective(objective: Objective, flow_weight: float, is_teacher: bool) -> None:
    """is_teacher: whether the model computes as its teacher does.

    Raises ValueError for an unknown one, and for what would do nothing.
    """
    one_of("model.objective", objective, get_args(Objective))
    if objective == "flow" and flow_weight:
        raise ValueError(
            f"model.flow_weight is {flow_weight:g}, of the flow loss beside distillation, and model.objective is flow: "
            "leave it at 0, or choose objective distill"
        )
    if objective == "distill" and is_teacher:
        raise ValueError(
            "model.objective distill has nothing to distil: the attention is dense and unquantised, as the teacher's; "
            "choose another model.attention.schedule, or objective flow"
        )
