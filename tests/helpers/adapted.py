"""Small Wans with LoRAs in them that do something."""

import torch

from docs.make.residual import lively_wan
from eval.bench.sizes import draw_inputs
from fps_flex import FPSAttention
from fps_flex.wan import WanConfig
from fps_flex.wan.base import build_base
from fps_flex.wan.lora import Lora, add_adapter, trained

CONFIG = WanConfig(dim=48, ffn_dim=96, heads=2, layers=2, channels=16, text_dim=32, freq_dim=64)
ATTENTION = FPSAttention("fps", tile=(2, 2, 3), block=16, engine="eager")
CPU = torch.device("cpu")
LORA = Lora(4, 8.0)


def make_state(seed=0, config=CONFIG):
    """Weights with which the blocks matter, by their official names."""
    torch.manual_seed(seed)
    return lively_wan(config, ATTENTION, CPU).state_dict()


def make_inputs(seed=0):
    torch.manual_seed(seed)
    latents, text = draw_inputs(CONFIG, (3, 4, 5), CPU)
    return latents, torch.tensor([700.0]), text


def adapted(base="fp32", attention=ATTENTION, lora=LORA, state=None):
    """A model whose adapters are as after some training. state: of its base."""
    model = build_base(CONFIG, attention, (state or make_state()).items(), base, "bf16")
    add_adapter(model, lora)
    shake(model)
    return model


def shake(model, seed=1):
    """Draw what `up` holds, which is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trained(model).items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def gradients(model, inputs):
    """Of all that is trained, by name."""
    own = trained(model)
    loss = model(*inputs).float().square().mean()
    return dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
