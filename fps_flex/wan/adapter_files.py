"""LoRAs written for stock tools."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import as_instance, one_of
from .adapter_alpha import METADATA
from .adapters import Adapter, LowRank
from .casting import Cast
from .export import appearing, check_room, new_folder
from .files import Spec
from .keys import to_diffusers
from .sizes import CONFIG
from .weights import SETTINGS, read_saved_settings
from .writing import write_file

AdapterFormat = Literal["diffusers-lora", "comfyui-lora"]

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # which load_lora_weights looks for in a folder


def export_adapter(
    adapter: Adapter, folder: Path, naming: AdapterFormat, settings: dict[str, Any] | None, cast: Cast
) -> None:
    """Write a LoRA, and beside it what `Weights.settings` says, where anything does. Folder, errors: as of `export`."""
    folder = new_folder(folder, "comfyui")
    tensors = _NAMINGS[naming](adapter)[0]
    with appearing(folder) as aside:
        check_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
        file = DIFFUSERS_FILE if naming == "diffusers-lora" else f"{folder.name}.safetensors"
        write_adapter(adapter, aside / file, naming, cast)
        if settings:
            (aside / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def settings_beside(source: str | Path) -> dict[str, Any] | None:
    """What a LoRA's .ckpt, or the folder that was made of one, says of the model that it was trained in; or None."""
    path = Path(source).expanduser()
    if path.suffix == ".ckpt":
        return read_saved_settings(path)
    folder = path if path.is_dir() else path.parent
    is_of_model = (folder / CONFIG).is_file()
    return read_saved_settings(folder) if (folder / SETTINGS).is_file() and not is_of_model else None


def write_adapter(adapter: Adapter, file: Path, naming: AdapterFormat, cast: Cast | None = None) -> None:
    """Write a LoRA into one safetensors file, which `read_adapter` reads back bit for bit.

    cast: to another dtype, but for alpha. Raises ValueError for another naming, for whole differences in
    diffusers', which has no place for them, and as `cast`.
    """
    as_instance("adapter", adapter, Adapter)
    one_of("naming", naming, get_args(AdapterFormat))
    tensors, metadata = _NAMINGS[naming](adapter)
    made = {name: cast(name, tensor) if cast and tensor.dim() else tensor for name, tensor in tensors.items()}
    write_file(file, {name: Spec(tuple(x.shape), x.dtype) for name, x in made.items()}, made.__getitem__, metadata)


def _for_comfyui(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter.layers.items():
        tensors |= _matrices(f"diffusion_model.{name}", layer)
        tensors[f"diffusion_model.{name}.alpha"] = _as_tensor(layer.alpha)
    for name, tensor in adapter.differences.items():
        owner, _, leaf = name.rpartition(".")
        ending = {"weight": f"{owner}.diff", "bias": f"{owner}.diff_b"}.get(leaf, f"{name}.diff")
        tensors[f"diffusion_model.{ending}"] = tensor
    return tensors, {}


def _for_diffusers(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    if adapter.differences:
        some, count = next(iter(adapter.differences)), len(adapter.differences)
        raise ValueError(
            f"the LoRA adds whole differences to {count} tensors ({some}), which diffusers' format has no place for: "
            "choose comfyui-lora, or merge it into a model (--format merged)"
        )
    layers = {to_diffusers(name): layer for name, layer in adapter.layers.items()}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= _matrices(f"transformer.{name}", layer)
    return tensors, {METADATA: json.dumps({f"transformer.{key}": x for key, x in _peft_config(layers).items()})}


def _as_tensor(alpha: float) -> Tensor:
    """In fp32, as tools write it, where that holds it."""
    single = torch.tensor(alpha, dtype=torch.float32)
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)


def _matrices(name: str, layer: LowRank) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}


def _peft_config(layers: dict[str, LowRank]) -> dict[str, Any]:
    """What peft's LoraConfig is made of: most layers' rank and alpha, and the others' own. layers: by full names."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: layer.alpha for name, layer in layers.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(layers),
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
    }


_NAMINGS: dict[str, Callable[[Adapter], tuple[dict[str, Tensor], dict[str, str]]]] = {
    "diffusers-lora": _for_diffusers,
    "comfyui-lora": _for_comfyui,
}
