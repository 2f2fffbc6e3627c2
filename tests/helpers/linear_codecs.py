"""Files of linear codecs, sound and not."""

import json
from math import prod

import torch
from safetensors.torch import save_file


def random_components(box=(1, 2, 2), channels=5, seed=0):
    """basis, mean and scale by name."""
    generator = torch.Generator().manual_seed(seed)
    n = 3 * prod(box)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q.T[:channels].float()
    mean, scale = torch.randn(n, generator=generator) / 4, torch.rand(channels, generator=generator) + 0.5
    return {"basis": basis.contiguous(), "mean": mean, "scale": scale}


def write_codec(path, tensors=None, box=(1, 2, 2), **record):
    """record: what the file says otherwise than a sound one."""
    tensors = random_components(box) if tensors is None else tensors
    channels = tensors["basis"].shape[0] if tensors["basis"].ndim else 1
    said = {"kind": "linear", "box": box, "channels": channels, **record}
    save_file(tensors, path, metadata={"fps-flex": json.dumps(said)})
    return path
