"""Training a Wan transformer with FPSAttention: the flow loss, the optimizer with warm-up, and validation."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from fps_flex import FPSAttention, Plan, Wan, WanConfig
from fps_flex.flow import add_noise, draw_noise_levels, euler_sample, flow_loss, spread_noise_levels
from fps_flex.wan import Residual
from fps_flex.weights import build_empty, fill, open_weights

from .codecs import Codec, TextEncoder
from .order import chance_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or NaN."""


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
        text_dropout: share of prompts replaced by an empty one in training, for guidance.
        val_levels: noise levels at which each validation clip is scored.
        checkpointing: recompute activations in the backward pass to save memory.
        compiled: run the transformer's blocks through torch.compile; made for GPUs.
        residual: what runs from block to block, and the head: in the dtype of the computation (compute: bf16 under
            bf16-mixed), or in fp32 as in the official model, which rounds less and keeps twice the bytes a block;
            none takes `default_residual` of the sizes (fps_flex/wan.py).

    Raises ValueError when codec, text or checkpoint don't fit the transformer, and for an unknown residual.
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
        text_dropout: float = 0.1,
        val_levels: int = 4,
        checkpointing: bool = False,
        compiled: bool = False,
        residual: Residual | None = None,
    ) -> None:
        super().__init__()
        for part, given, name in ((codec, codec.channels, "channels"), (text, text.dim, "text_dim")):
            if given != getattr(wan, name):
                raise ValueError(
                    f"the {type(part).__name__} gives {given}, expected the transformer's {name} = {getattr(wan, name)}"
                )
        self.model = _start_from(checkpoint, wan, attention) if checkpoint else Wan(wan, attention)
        self.model.checkpointing, self.model.compiled = checkpointing, compiled
        self.model.residual = residual
        self.codec, self.text = codec, text
        self.lr, self.warmup_steps, self.weight_decay, self.betas, self.eps = lr, warmup_steps, weight_decay, betas, eps
        self.shift, self.logit_mean, self.logit_std = shift, logit_mean, logit_std
        self.text_dropout, self.val_levels = text_dropout, val_levels
        self.val_loss = MeanMetric()

    def plan(self, size: tuple[int, int, int], sigma: Float[Tensor, " b"]) -> Plan:
        """The attention plan for videos of so many frames, rows, columns. Raises ValueError where sizes don't fit."""
        return self.model.attention.plan(self.model.config.grid(self.codec.latent_size(size)), sigma)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        chance = self._generator(self.trainer.fit_loop.total_batch_idx)
        dropped = torch.rand(len(batch["prompt"]), generator=chance) < self.text_dropout
        latents, text = self._encode(batch, dropped)
        sigma = draw_noise_levels(len(latents), self.shift, self.logit_mean, self.logit_std, chance).to(self.device)
        loss = self._losses(latents, text, sigma, self._noise_like(latents, chance)).mean()
        if not loss.isfinite():
            raise NonFiniteLoss(f"train/loss is {loss.item()} at step {self.global_step} on {', '.join(batch['name'])}")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(latents))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The loss at `val_levels` noise levels spread as training draws them, with the same noise every time."""
        latents, text = self._encode(batch, torch.zeros(len(batch["prompt"]), dtype=torch.bool))
        noise = self._noise_like(latents, self._generator(batch_idx))
        levels = spread_noise_levels(self.val_levels, self.shift, self.logit_mean, self.logit_std)
        for sigma in levels.to(self.device):
            self.val_loss.update(self._losses(latents, text, sigma.expand(len(latents)), noise))
        self.log("val/loss", self.val_loss, prog_bar=True, batch_size=len(latents))

    @torch.no_grad()
    def sample(
        self, prompts: list[str], size: tuple[int, int, int], steps: int, guidance: float, seed: int = 0
    ) -> Float[Tensor, "b 3 f h w"]:
        """Videos of `size` (frames, rows, columns) in -1 to 1. guidance: 1 follows the prompt, more stresses it."""
        shape = (len(prompts), self.codec.channels, *self.codec.latent_size(size))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        text, no_text = (self.text(x, self.device) for x in (prompts, [""] * len(prompts)))

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            with_text = self.model(x, 1000 * sigma, text)
            if guidance == 1:
                return with_text
            without = self.model(x, 1000 * sigma, no_text)
            return without + guidance * (with_text - without)

        *_, latents = euler_sample(velocity, noise, steps, self.shift)
        return self.codec.decode(latents).clamp(-1, 1)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.model.parameters(), self.lr, self.betas, self.eps, self.weight_decay, fused=True
        )
        rise = self.warmup_steps + 1
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rise))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """By norm. Lightning's own refuses a fused optimizer under autocast, though bf16 has no scaled gradients."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a reader needs to build the same model and to sample from it, as plain data."""
        data = self.trainer.datamodule
        checkpoint["fps_flex"] = {
            "wan": asdict(self.model.config),
            "attention": asdict(self.model.attention),
            "residual": self.model.residual,
            "shift": self.shift,
            "step": self.global_step,
            "codec": self.codec.spec(),
            "text": self.text.spec(),
            "clip": {"frames": data.frames, "height": data.height, "width": data.width, "fps": data.fps},
        }

    def _encode(self, batch: dict[str, Any], dropped: Bool[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """Latents [B, C, TF, TH, TW] and text states [B, L, E], with an empty prompt where it is dropped.

        A prepared data set holds both; clips are encoded here.
        """
        if "latents" in batch:
            empty = self.trainer.datamodule.empty_text.to(batch["text"])
            text = torch.where(dropped[:, None, None].to(self.device), empty, batch["text"])
            return batch["latents"].float(), text
        prompts = ["" if drop else prompt for drop, prompt in zip(dropped.tolist(), batch["prompt"], strict=True)]
        return self.codec.encode(batch["video"]), self.text(prompts, self.device)

    def _losses(self, latents: Tensor, text: Tensor, sigma: Tensor, noise: Tensor) -> Float[Tensor, " b"]:
        velocity = self.model(add_noise(latents, noise, sigma), 1000 * sigma, text)
        return flow_loss(velocity, latents, noise)

    def _generator(self, number: int) -> torch.Generator:
        """Chance that depends on the run's seed, the rank and the batch alone, so that a resumed run draws the same."""
        return chance_of(torch.initial_seed(), self.global_rank, number)

    def _noise_like(self, latents: Tensor, chance: torch.Generator) -> Tensor:
        return torch.randn(latents.shape, generator=chance).to(self.device)


def _start_from(checkpoint: str, wan: WanConfig, attention: FPSAttention) -> Wan:
    """A model filled from a checkpoint, in fp32. Raises ValueError where that is missing or of other sizes."""
    weights = open_weights(checkpoint)
    other = [
        f"{name} {value}, expected {getattr(wan, name)}"
        for name, value in asdict(weights.config).items()
        if value != getattr(wan, name)
    ]
    if other:
        raise ValueError(f"{checkpoint} holds a transformer of {', '.join(other)}: set model.wan to what it holds")
    model = build_empty(wan, attention)
    fill(model, weights.stream(), "cpu", torch.float32)
    return model
