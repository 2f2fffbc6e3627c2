"""The Wan transformer against the stock one of diffusers, and what is ours in it."""

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from fps_flex import WAN_1_3B, WAN_14B, WAN_TINY, FPSAttention, TileLayout, Wan, WanConfig
from fps_flex.rope import ordered_rope

CONFIG = WanConfig(dim=96, ffn_dim=160, heads=4, layers=2, channels=16, text_dim=32, freq_dim=64)

# ours (official) -> diffusers; norm2 and norm3 change places
NAMES = [
    (".self_attn.", ".attn1."), (".cross_attn.", ".attn2."),
    (".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."), (".o.", ".to_out.0."),
    (".ffn.0.", ".ffn.net.0.proj."), (".ffn.2.", ".ffn.net.2."),
    (".norm3.", ".norm2."),
    ("head.modulation", "scale_shift_table"), ("modulation", "scale_shift_table"), ("head.head", "proj_out"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
]  # fmt: skip


def to_diffusers(state):
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def random_wan(config=CONFIG, attention=None, **options):
    torch.manual_seed(0)
    model = Wan(config, attention or FPSAttention("dense", tile=(2, 2, 2), block=8), **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize(
    ("latents", "text_length", "timesteps"),
    [((1, 4, 4), 7, (1000.0, 3.5)), ((3, 8, 12), 1, (500.0, 999.0)), ((5, 6, 10), 64, (0.0, 250.0))],
)
def test_dense_equals_diffusers(latents, text_length, timesteps):
    ours = random_wan(attention=FPSAttention("dense", tile=(1, 2, 2), block=8))
    theirs = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=24, in_channels=16, out_channels=16, text_dim=32, freq_dim=64,
        ffn_dim=160, num_layers=2,
    )  # fmt: skip
    theirs.load_state_dict(to_diffusers(ours.state_dict()), strict=True)
    x, text, timestep = torch.randn(2, 16, *latents), torch.randn(2, text_length, 32), torch.tensor(timesteps)
    with torch.no_grad():
        expected = theirs(x, timestep, text, return_dict=False)[0]
        torch.testing.assert_close(ours(x, timestep, text), expected, rtol=1e-5, atol=1e-5)


def test_checkpointing_gives_the_same_gradients():
    x, text, timestep = torch.randn(2, 16, 2, 8, 8), torch.randn(2, 5, 32), torch.tensor([900.0, 100.0])
    gradients = []
    for checkpointing in (False, True):
        model = random_wan(attention=FPSAttention(tile=(2, 2, 2), block=8), checkpointing=checkpointing)
        model(x, timestep, text).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_forward_in_inference_mode_does_not_spoil_a_later_backward():
    model = random_wan(attention=FPSAttention(tile=(2, 2, 2), block=8))
    inputs = torch.randn(1, 16, 2, 6, 14), torch.tensor([500.0]), torch.randn(1, 5, 32)
    with torch.inference_mode():
        model(*inputs)
    model(*inputs).sum().backward()


def test_tokens_are_ordered_once_a_forward(monkeypatch):
    calls = []
    order = TileLayout.order
    monkeypatch.setattr(TileLayout, "order", lambda *args, **kw: calls.append(args) or order(*args, **kw))
    model = random_wan(attention=FPSAttention(tile=(2, 2, 2), block=8))
    ordered_rope.cache_clear()
    for expected in (3, 1):  # cos, sin and the tokens; then the tokens alone
        calls.clear()
        model(torch.randn(1, 16, 2, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 32))
        assert len(calls) == expected


def test_pads_of_ragged_tiles_do_not_leak():
    """A grid that tiles of 2 don't divide gives what tiles that divide it give, with full windows and one scale."""
    x, text, timestep = torch.randn(1, 16, 3, 6, 10), torch.randn(1, 5, 32), torch.tensor([500.0])
    schedule = FPSAttention("uniform", sparse=False).step_schedule
    for quantize in (True, False):
        outs = [
            random_wan(attention=FPSAttention("dense" if not quantize else _one_scale(schedule), tile, block))(
                x, timestep, text
            )
            for tile, block in (((2, 2, 2), 16), ((3, 3, 5), 45))
        ]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


def _one_scale(schedule):
    return replace(schedule, regimes=tuple(replace(regime, granularity="head") for regime in schedule.regimes))


@pytest.mark.parametrize(("config", "billions"), [(WAN_1_3B, 1.42), (WAN_14B, 14.29), (WAN_TINY, 0.000867)])
def test_named_sizes(config, billions):
    with torch.device("meta"):
        model = Wan(config, FPSAttention())
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert count == pytest.approx(billions, rel=0.01)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="dim 100 over 3 heads"):
        WanConfig(dim=100, ffn_dim=8, heads=3, layers=1)
    with pytest.raises(ValueError, match=r"latents of \(2, 7, 8\) \(frames, rows, columns\) don't divide"):
        CONFIG.grid((2, 7, 8))
