"""Small LoRAs of the tests' tiny transformer, in the names that each tool gives them."""

import json
from dataclasses import asdict

import torch
from safetensors.torch import save_file

from fps_flex import FPSAttention
from fps_flex.wan.adapters import Adapter, LowRank
from fps_flex.wan.codecs import ByteText, PixelCodec
from fps_flex.wan.keys import to_diffusers
from tests.helpers.tiny_wan import SIZES

DIM, FFN = SIZES["dim"], SIZES["ffn_dim"]
OF_BLOCKS = {f"{a}.{x}": (DIM, DIM) for a in ("self_attn", "cross_attn") for x in "qkvo"}
OF_BLOCKS |= {"ffn.0": (FFN, DIM), "ffn.2": (DIM, FFN)}
LAYERS = {f"blocks.{i}.{name}": shape for i in range(SIZES["layers"]) for name, shape in OF_BLOCKS.items()}
OTHERS = {
    "text_embedding.0": (DIM, SIZES["text_dim"]),
    "time_projection.1": (6 * DIM, DIM),
    "head.head": (64, DIM),
}
WHOLE = {"blocks.0.norm3.weight": (DIM,), "blocks.0.self_attn.norm_q.weight": (DIM,), "blocks.1.ffn.0.bias": (FFN,),
         "blocks.1.modulation": (1, 6, DIM), "head.modulation": (1, 2, DIM)}  # fmt: skip


def make_adapter(shapes=LAYERS, rank=4, alpha=None, whole=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (0.2 * torch.randn(shape, generator=generator)).to(dtype)

    layers = {
        name: LowRank(draw(rank, size[1]), draw(size[0], rank), float(rank if alpha is None else alpha))
        for name, size in shapes.items()
    }
    return Adapter(layers, {name: draw(*shape) for name, shape in (whole or {}).items()})


def assert_same_adapter(got, expected):
    """Bit for bit."""
    assert got.layers.keys() == expected.layers.keys() and got.differences.keys() == expected.differences.keys()
    for name, layer in expected.layers.items():
        own = got.layers[name]
        assert own.alpha == layer.alpha, name
        for one, other in ((own.down, layer.down), (own.up, layer.up)):
            assert one.dtype == other.dtype and torch.equal(one, other), name
    for name, tensor in expected.differences.items():
        assert got.differences[name].dtype == tensor.dtype and torch.equal(got.differences[name], tensor), name
    assert got.fingerprint() == expected.fingerprint()


def named(adapter, pattern, down="lora_A.weight", up="lora_B.weight", alpha=None):
    """Tensors of a LoRA. pattern: of a layer's name, with official, flat or diffusers names in it."""
    tensors = {}
    for name, layer in adapter.layers.items():
        stem = pattern.format(
            official=name, flat=name.replace(".", "_"), diffusers=to_diffusers(name),
            flat_diffusers=to_diffusers(name).replace(".", "_"),
        )  # fmt: skip
        tensors |= {f"{stem}.{down}": layer.down, f"{stem}.{up}": layer.up}
        if alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(layer.alpha, dtype=alpha)
    return tensors


def save(tensors, file, **metadata):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, file, metadata=metadata or None)
    return file


def diffusers_header(prefix="transformer.", **config):
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in config.items()})}


def save_run(file, live, average, base, fingerprint, wan, alpha=8.0, rank=4, **said):
    """A checkpoint as train.fit writes it for a LoRA."""
    file.parent.mkdir(parents=True, exist_ok=True)
    form = {"pattern": "model.{official}", "down": "lora_A.default.weight", "up": "lora_B.default.weight"}
    states = {"state_dict": named(average, **form), "current_model_state": named(live, **form)}
    fps_flex = {
        "wan": wan,
        "attention": asdict(FPSAttention("fps", tile=(2, 2, 3), block=16)),
        "codec": PixelCodec((2, 2, 2)).spec(),
        "text": ByteText(32, 40).spec(),
        "clip": {"frames": 10, "height": 32, "width": 32, "fps": 8.0},
        "residual": "fp32", "shift": 3.0, "step": 7, "run_id": "0123456789abcdef", "noise_levels": (0.0, 1.0),
        "lora": {"rank": rank, "alpha": alpha, "targets": ["q", "k", "v", "o", "ffn.0", "ffn.2"]},
        "base": {"path": str(base), "fingerprint": fingerprint, "dtype": "fp8"},
        **said,
    }  # fmt: skip
    torch.save({**states, "fps_flex": {name: x for name, x in fps_flex.items() if x is not None}}, file)
    return file
