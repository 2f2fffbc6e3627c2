"""LoRA: low-rank adapters beside the frozen linear layers of a Wan transformer's blocks, through peft."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn

from ..attention import FPSAttention
from ..checks import as_real, as_tuple, as_whole, show
from .config import WanConfig
from .fp8_linear import Fp8Linear
from .model import Wan
from .weights import build_empty

ATTENTIONS = ("self_attn", "cross_attn")
LAYERS = (*(f"{attention}.{name}" for attention in ATTENTIONS for name in "qkvo"), "ffn.0", "ffn.2")  # of each block
ADAPTER = "default"  # peft's name of it, within those of its tensors


@dataclass(frozen=True)
class Lora:
    """What an adapter adds to a frozen layer: alpha / rank * up(down(x)), with up zero at first.

    Args:
        rank: width between down and up.
        alpha: of the factor alpha / rank.
        targets: which linear layers of each block: self_attn.q, cross_attn.q, ..., ffn.0, ffn.2; or by a part of such
            a name: q for that of both attentions, self_attn for its four, ffn for both.

    Raises ValueError for a rank below 1, an alpha that isn't above 0, and targets that name no layer.
    """

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "ffn.0", "ffn.2")

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", as_whole("lora.rank", self.rank))
        object.__setattr__(self, "alpha", as_real("lora.alpha", self.alpha))
        object.__setattr__(
            self, "targets", as_tuple("lora.targets", self.targets, f"layers of a block: {', '.join(LAYERS)}")
        )
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha is {self.alpha:g}, expected a number above 0")
        if not self.targets:
            raise ValueError(f"lora.targets is empty, expected layers of a block: {', '.join(LAYERS)}")
        for target in self.targets:
            if not any(_matches(layer, target) for layer in LAYERS):
                raise ValueError(
                    f"lora.targets holds {show(target)}, which matches no layer of a block: {_like(target)}"
                )

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of each block that the targets name."""
        return tuple(layer for layer in LAYERS if any(_matches(layer, target) for target in self.targets))

    def check_fits(self, config: WanConfig) -> None:
        """Raises ValueError for a rank above the narrowest layer's width."""
        if self.rank > config.dim:
            raise ValueError(f"lora.rank is {self.rank}, expected at most {config.dim}, the width of the layers")


def _matches(layer: str, target: object) -> bool:
    return target == layer or (isinstance(target, str) and target in layer.split("."))


def _like(target: object) -> str:
    parts = dict.fromkeys([*LAYERS, *(part for layer in LAYERS for part in layer.split(".") if not part.isdigit())])
    close = get_close_matches(str(target), parts, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected {', '.join(LAYERS)}, or a part of one"


def check_peft() -> None:
    """Raises ValueError where peft isn't installed."""
    if find_spec("peft") is None:
        raise ValueError("a LoRA needs peft: pip install peft")


def add_adapter(model: Wan, lora: Lora) -> None:
    """Freeze a model and put adapters beside its layers, in place; they alone are trained, in fp32.

    Raises ValueError as `check_peft`.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    names = "|".join(layer.replace(".", r"\.") for layer in lora.layers)
    alpha = cast(int, lora.alpha)  # so annotated, and multiplied with
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=rf"blocks\.\d+\.({names})")
    model.requires_grad_(False)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for parameter in trained(model).values():
        parameter.data = parameter.data.float()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer moves: of a model with adapters these alone."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_trained(model: Wan) -> Wan:
    """A model with its own trained parameters, on the same frozen ones."""
    return deepcopy(model, {id(x): x for x in model.parameters() if not x.requires_grad})


def without_adapter(model: Wan, attention: FPSAttention) -> Wan:
    """The model that adapters were put into, with another attention, on the same weights: nothing is copied.

    Its linear layers compute with weights as they are stored, in the dtype of their inputs, whatever the model's do.
    """
    base = build_empty(model.config, attention)
    base.compiled, base.residual = model.compiled, model.residual
    for path, module in list(base.named_modules()):
        own = _base_layer(model.get_submodule(path))
        if isinstance(own, Fp8Linear):
            base.set_submodule(path, own.restored())
            continue
        for leaf, _ in module.named_parameters(recurse=False):
            setattr(module, leaf, getattr(own, leaf))
    return base


def _base_layer(module: nn.Module) -> nn.Module:
    """What peft wrapped, or the module itself."""
    return dict(module.named_children()).get("base_layer", module)


def below_adapter(model: nn.Module, name: str) -> str:
    """What a parameter is called in a model that may have adapters, in which a layer's own lie one level deeper."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.base_layer.{leaf}" if hasattr(model.get_submodule(owner), "base_layer") else name


def load_adapter(model: Wan, tensors: dict[str, Tensor]) -> None:
    """Put values into a model's adapters. tensors: as `trained` names them.

    Raises ValueError for other layers, and for another rank.
    """
    own = trained(model)
    if other := sorted(own.keys() ^ tensors.keys()):
        raise ValueError(f"the adapter is of other layers than this configuration's: {', '.join(other[:3])} ...")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"the adapter's {name} is of shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
