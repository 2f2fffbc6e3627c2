"""A tiny Wan transformer in the layout of the official release."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fps_flex import FPSAttention
from fps_flex.wan.weights import open_weights

DENSE = FPSAttention("dense", tile=None, block=16)


def official_shapes(dim, ffn, layers, text=4096, freq=256, channels=16):
    """Names and shapes of the official release, written from its description alone."""
    shapes = {
        "patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,),
        "text_embedding.0.weight": (dim, text), "text_embedding.0.bias": (dim,),
        "text_embedding.2.weight": (dim, dim), "text_embedding.2.bias": (dim,),
        "time_embedding.0.weight": (dim, freq), "time_embedding.0.bias": (dim,),
        "time_embedding.2.weight": (dim, dim), "time_embedding.2.bias": (dim,),
        "time_projection.1.weight": (6 * dim, dim), "time_projection.1.bias": (6 * dim,),
        "head.head.weight": (4 * channels, dim), "head.head.bias": (4 * channels,),
        "head.modulation": (1, 2, dim),
    }  # fmt: skip
    for i in range(layers):
        block = {"modulation": (1, 6, dim), "norm3.weight": (dim,), "norm3.bias": (dim,)}
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                block |= {f"{attention}.{part}.weight": (dim, dim), f"{attention}.{part}.bias": (dim,)}
            block |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
        block |= {"ffn.0.weight": (ffn, dim), "ffn.0.bias": (ffn,), "ffn.2.weight": (dim, ffn), "ffn.2.bias": (dim,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def tensors_of(folder):
    return {name: x for file in sorted(Path(folder).glob("*.safetensors")) for name, x in load_file(file).items()}


def make_official(folder, dtype=torch.float32):
    """A random official release: shards with an index, as 14B's, and its config.json."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = official_shapes(48, 96, 2, text=32, freq=64)
    tensors = {name: (0.1 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        file = f"diffusion_pytorch_model-{i + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "t2v", "dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def refused_weights(path, *messages):
    """The one line that a file is refused with."""
    with pytest.raises(ValueError) as caught:
        open_weights(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 1500, line
    for message in messages:
        assert message in line, line
    return line


def read_weights(path):
    return dict(open_weights(path).stream())
