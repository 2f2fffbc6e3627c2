"""FPS attention in a stock diffusers Wan pipeline: one line after it is loaded, and one to take it out again.

    install(pipe.transformer, schedule="fps")

diffusers' blocks work in raster order, and a processor of theirs is told neither the grid nor the noise level. So hooks
on the transformer read both and plan each forward pass, and every layer orders q, k, v into tiles and its output back.

diffusers' own files don't say the attention: from_pretrained gives dense attention. save_pretrained therefore also
writes fps_flex.json (save_hook.py), and the way back is

    transformer = WanTransformer3DModel.from_pretrained(folder)
    install_trained(transformer, folder)

Weights saved in another way, such as torch.save(transformer.state_dict()), go without it.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, fields, replace
from math import prod
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange
from torch import Tensor

from .attention import FPSAttention, Plan
from .checks import show
from .choice import describe_choice
from .quant import ScaleFormat
from .schedule import StepSchedule
from .tiles import VOLUMES, Triple
from .wan.rope import rotate, signed
from .wan.save_hook import SaveConfig
from .wan.stock import from_diffusers
from .wan.weights import read_saved_settings

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanAttention
    from jaxtyping import Float, Int, Num

logger = logging.getLogger(__name__)


def install(
    transformer: WanTransformer3DModel,
    schedule: str | StepSchedule = "fps",
    tile: Triple | None = None,
    scale_format: ScaleFormat = "pow2",
    **options: Any,
) -> None:
    """Give every self-attention layer of a diffusers Wan transformer FPS attention; cross-attention stays as it is.

    Any grid and noise level: both are read from each call. What is left out is what is fastest: a tile planned for each
    grid, power-of-two scales and the fastest engine that can run them. A line is logged, once a grid: what was taken,
    and, as a warning, what would be faster. The paper's own tile and scales are tile=(6, 8, 8), scale_format="fp32". A
    tile longer than the grid on an axis is cut to it, so that one line serves long and short videos. Installed again,
    the new settings take the place of the old.

    schedule, tile, scale_format, options: as for FPSAttention (block, quantize, sparse, carrier, engine, smooth_k,
    codes, rotate, layers).
    Gradients flow where blocks are neither compiled nor checkpointed. save_pretrained saves the settings too; after
    from_pretrained, `install_trained` with the folder puts this attention back.
    Raises ValueError for another kind of model, float16, a processor or a sequence split that isn't stock diffusers',
    for unknown, wrong or contradictory options, and for layers that aren't there.
    """
    _check_options(options)
    wan = _unwrap(transformer)
    attention = FPSAttention(schedule, tile, scale_format=scale_format, **options)
    _install(wan, attention, {"wan": asdict(from_diffusers(wan.config))})


def install_trained(transformer: WanTransformer3DModel, path: str | Path, **options: Any) -> None:
    """Give a transformer that was fine-tuned here the attention it was trained with, or a saved one that it had.

    path: the checkpoint of train.fit, the folder that `python -m fps_flex.weights convert` made of it, or one that
    save_pretrained wrote after `install` or `install_trained` (a pipeline's subfolder transformer).
    options: of FPSAttention, each in place of what it was trained with (carrier="float8").
    Raises ValueError as `install`, and where the settings are missing or another model's.
    """
    _check_options(options)
    wan = _unwrap(transformer)
    settings = read_saved_settings(path)
    here = asdict(from_diffusers(wan.config))
    other = {name: value for name, value in settings["wan"].items() if value != here[name]}
    if other:
        trained, given = (", ".join(f"{name} {sizes[name]}" for name in other) for sizes in (other, here))
        raise ValueError(f"{path} was trained as another model: {trained}; this transformer has {given}")
    _install(wan, replace(FPSAttention.from_dict(settings["attention"]), **options), settings)


def uninstall(transformer: WanTransformer3DModel) -> None:
    """Put the processors from before `install` back and take the hooks off. Raises ValueError where there are none.

    What was saved before keeps its fps_flex.json, also when it is saved over now: delete that, or save elsewhere.
    """
    wan = _unwrap(transformer)
    installed: Installed | None = vars(wan).get("_fps_flex")
    if installed is None:
        raise ValueError("FPS attention is not installed in this transformer: nothing to uninstall")
    for block, own, stock in zip(wan.blocks, installed.processors, installed.replaced, strict=True):
        if block.attn1.processor is own:
            block.attn1.set_processor(stock)
    for hook in installed.hooks:
        hook.remove()
    if isinstance(vars(wan).get("save_config"), SaveConfig):
        del wan.save_config
    del wan._fps_flex


class ForwardPass(local):
    """The forward pass under way in this thread, which the hooks open and close and all its layers share.

    Kept out of the processor and so out of compiled graphs: another step or schedule compiles nothing.
    """

    attention: FPSAttention | None = None
    plan: Plan | None = None


forward_pass = ForwardPass()


class FPSProcessor:
    """The attention processor of one self-attention layer."""

    def __init__(self, layer: int) -> None:
        self.layer = torch.tensor(layer, device="cpu")  # a tensor, so that all layers share one compiled graph

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Float[Tensor, "b s d"],
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: tuple[Tensor, Tensor],
    ) -> Float[Tensor, "b s d"]:
        """Called by diffusers' self-attention, in raster order. rotary_emb: its tables, each value of a pair twice."""
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("FPS attention takes a video's own tokens and no mask: got other tokens or a mask")
        if attn.fused_projections:
            q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        q, k, v = (rearrange(x, "b s (h d) -> b s h d", h=attn.heads) for x in (attn.norm_q(q), attn.norm_k(k), v))
        cos, sin = rotary_emb
        rope = cos, signed(sin)
        q, k = (rotate(x, rope).type_as(v) for x in (q, k))  # a GPU's autocast norms in fp32
        attend = _attend_opaquely if torch.compiler.is_compiling() else attend_raster
        out = attend(q, k, v, self.layer)
        return attn.to_out[1](attn.to_out[0](rearrange(out, "b s h d -> b s (h d)")))


class Installed:
    """What is in a transformer, for `uninstall`, and what plans each of its forward passes.

    processors, replaced: ours and the stock ones, a layer each. hooks: on the transformer.
    """

    def __init__(self, attention: FPSAttention, patch: Triple, layers: int) -> None:
        self.attention, self.patch = attention, patch
        self.processors = [FPSProcessor(layer) for layer in range(layers)]
        self.replaced: list[Any] = []
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._said: set[Triple] = set()

    @torch.compiler.disable
    def before_forward(self, transformer: WanTransformer3DModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Plan the pass from the transformer's arguments: the shape of the latents [B, C, F, H, W] and the timestep."""
        if torch.is_grad_enabled() and transformer.gradient_checkpointing:
            raise ValueError("FPS attention has no gradient checkpointing in diffusers: disable it, or use train.fit")
        given = dict(zip(("hidden_states", "timestep"), args, strict=False)) | kwargs
        latents, timestep = given["hidden_states"], given["timestep"]
        t, h, w = (size // p for size, p in zip(latents.shape[2:], self.patch, strict=True))
        sigma = noise_level(timestep).to(latents.device).expand(len(latents))
        forward_pass.attention = cut_tile(self.attention, (t, h, w))
        self._say(transformer, (t, h, w), latents.device)
        forward_pass.plan = forward_pass.attention.plan((t, h, w), sigma)

    def _say(self, transformer: WanTransformer3DModel, grid: Triple, device: torch.device) -> None:
        """Once a grid, what its passes get, and as a warning what would be faster, or cuts the video."""
        if grid in self._said or self.attention.is_dense:
            return
        self._said.add(grid)
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else transformer.dtype
        head_dim = transformer.config.attention_head_dim
        choice = describe_choice(cast(FPSAttention, forward_pass.attention), grid, device, dtype, head_dim)
        logger.log(logging.WARNING if choice.faster or choice.cuts else logging.INFO, "%s", choice)

    @torch.compiler.disable
    def after_forward(self, *_: Any) -> None:
        forward_pass.attention = forward_pass.plan = None


def attend_raster(
    q: Float[Tensor, "b s h d"], k: Float[Tensor, "b s h d"], v: Float[Tensor, "b s h d"], layer: Int[Tensor, ""]
) -> Float[Tensor, "b s h d"]:
    """Attention over raster tokens by the plan of the pass under way, through tile order and back.

    layer: which one's, on the CPU.
    """
    attention, plan = forward_pass.attention, forward_pass.plan
    if attention is None or plan is None:
        raise ValueError("FPS attention ran outside a forward pass of its transformer: call the transformer itself")
    q, k, v = (rearrange(x, "b s h d -> b h s d") for x in (q, k, v))
    return rearrange(attention.over_tokens(q, k, v, plan.of_layer(int(layer))), "b h s d -> b s h d")


@torch.library.custom_op("fps_flex::attend_opaquely", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attend_opaquely(q: Tensor, k: Tensor, v: Tensor, layer: Tensor) -> Tensor:
    """`attend_raster` as one node of a compiled block's graph, so that no step replays another's plan.

    The engine inside is compiled by itself, as everywhere.
    """
    return attend_raster(q, k, v, layer)


@_attend_opaquely.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, layer: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def noise_level(timestep: Num[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Sigma of each video. Where each token has a timestep (Wan2.2 5B), the highest one: lower ones are of an image."""
    return (timestep.amax(1) if timestep.ndim == 2 else timestep).float() / 1000


def cut_tile(attention: FPSAttention, grid: Triple) -> FPSAttention:
    """The attention on a grid that is shorter than its tile: an axis's one tile is then the whole axis."""
    if attention.tile is None:
        return replace(attention, tile=grid) if prod(grid) < VOLUMES[0] else attention
    t, h, w = map(min, attention.tile, grid)
    return replace(attention, tile=(t, h, w))


def _install(wan: WanTransformer3DModel, attention: FPSAttention, settings: dict[str, Any]) -> None:
    """settings: what is saved with it, beside the attention."""
    _check(wan)
    attention.check_model(len(wan.blocks), wan.config.attention_head_dim)
    if "_fps_flex" in vars(wan):
        uninstall(wan)
    installed = Installed(attention, tuple(wan.config.patch_size), len(wan.blocks))
    for block, processor in zip(wan.blocks, installed.processors, strict=True):
        installed.replaced.append(block.attn1.processor)
        block.attn1.set_processor(processor)
    installed.hooks = [
        wan.register_forward_pre_hook(installed.before_forward, with_kwargs=True),
        wan.register_forward_hook(installed.after_forward),
    ]
    wan._fps_flex = installed
    wan.save_config = SaveConfig(wan, {**settings, "attention": asdict(attention)})


def _check_options(options: dict[str, Any]) -> None:
    known = [field.name for field in fields(FPSAttention)]
    unknown = [name for name in options if name not in known]
    if unknown:
        given = ", ".join(f"{name}={show(options[name])}" for name in unknown)
        raise ValueError(f"got {given}, expected options of FPSAttention: {', '.join(known)}")


def _unwrap(transformer: Any) -> WanTransformer3DModel:
    """The transformer itself, also out of torch.compile's wrapper. Raises ValueError for anything else."""
    from diffusers import WanTransformer3DModel

    wan = getattr(transformer, "_orig_mod", transformer)
    if not isinstance(wan, WanTransformer3DModel):
        hint = ": pass its transformer" if hasattr(wan, "transformer") else ""
        if hasattr(wan, "get_base_model"):  # peft's wrapper
            hint = ": pass its get_base_model()"
        raise ValueError(f"transformer: got a {type(wan).__name__}, expected diffusers' WanTransformer3DModel{hint}")
    return wan


def _check(wan: WanTransformer3DModel) -> None:
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    if wan.dtype == torch.float16:
        raise ValueError("the transformer is in float16, expected bfloat16 or float32: load it with torch.bfloat16")
    installed: Installed | None = vars(wan).get("_fps_flex")
    for i, block in enumerate(wan.blocks):
        processor = block.attn1.processor
        if type(processor) is not WanAttnProcessor and processor not in (installed.processors if installed else ()):
            raise ValueError(
                f"blocks.{i}.attn1 has another attention processor already, {type(processor).__name__}: "
                "set diffusers' own again with transformer.set_attn_processor(WanAttnProcessor())"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise ValueError("the transformer splits its tokens over GPUs (context parallelism): FPS attention can't")
