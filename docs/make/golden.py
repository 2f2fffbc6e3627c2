"""Write the golden vectors of docs/golden: what each step of the method gives for small inputs.

python -m docs.make.golden
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from fps_flex import FPSAttention, Plan, Regime, StepSchedule, TileLayout, density, preset, sliding_tile_mask_mod
from fps_flex.checks import Triple
from fps_flex.masks import tile_mask
from fps_flex.quant import (
    CodeFormat,
    channel_scales,
    pool_amax,
    quantize,
    round_e4m3,
    scale_of,
    scales_at_slots,
    tile_amax,
    tile_groups,
)
from fps_flex.schedule import Extent
from fps_flex.smoothing import Rotation, centred_tile_amax, key_stats, mean_of_tokens, rotate_channels
from fps_flex.wan.flow import sampling_levels
from train.common.atomic import beside
from train.common.console import check_writable

Arrays = dict[str, np.ndarray]

FORMATS = ("fp32", "pow2")
PAD = 1e4  # what pad slots of q, k and v hold: nothing may depend on it
UNIT = 2.0**-5  # inputs are whole numbers of at most 8 bits times powers of two: exact in bfloat16


@dataclass(frozen=True)
class Case:
    """A batch with one regime a sample. unlike: samples, heads, q and k differ in size, and so in all their scales.

    smooth_k, codes, rotate: as in FPSAttention; where any is not the default of these, K has a mean to take off.
    """

    schedule: str | StepSchedule
    grid: Triple
    tile: Triple
    sigma: tuple[float, ...]
    heads: int
    head_dim: int
    block: int = 8
    unlike: bool = False
    smooth_k: bool = False
    codes: CodeFormat = "e4m3"
    rotate: Rotation | None = None

    @property
    def options(self) -> Arrays:
        """Those that cases have beside the first ones'; 1 is on."""
        given = {"smooth_k": self.smooth_k, "int8": self.codes == "int8", "rotate": self.rotate is not None}
        return {name: np.array(1, np.int32) for name, on in given.items() if on}

    def attention(self, scale_format: str) -> FPSAttention:
        options = {"smooth_k": self.smooth_k, "codes": self.codes, "rotate": self.rotate, "scale_format": scale_format}
        return FPSAttention(self.schedule, self.tile, self.block, engine="eager", **options)


CASES = {
    # edge tiles on all three axes, even windows, tiles of a full and a partial block
    "ragged": Case(
        StepSchedule((), (Regime((1, 2, 2), 1),)),
        (3, 7, 7), (2, 3, 3), (0.5,), heads=1, head_dim=16, block=4,
    ),
    # two samples with different windows and granularities
    "mixed": Case(
        StepSchedule((0.5,), (Regime((2, 3, 1), 2), Regime((1, 2, 3), "head")), shift=1.0),
        (4, 5, 6), (2, 2, 2), (0.75, 0.25), heads=2, head_dim=8,
    ),
    # the three regimes of the fps preset in one batch, ten tiles wide
    "fps": Case("fps", (3, 4, 20), (2, 2, 2), (0.99, 0.8, 0.3), heads=1, head_dim=8),
    # four tiles on T, windows of 1, 2 and more than there are, granularity 3, a bound just ahead and just passed
    "deep": Case(
        StepSchedule(
            (0.4, 0.8), (Regime((1, 5, 2), 3), Regime((2, 1, 9), "head"), Regime((9, 2, 1), 3)), shift=1.0
        ),
        (7, 3, 7), (2, 2, 2), (0.6 + 2e-5, 0.6 + 5e-6, 0.2), heads=2, head_dim=8, unlike=True,
    ),
    # K's mean taken off, e4m3; edge tiles, pads, two heads whose means differ
    "smooth": Case(
        StepSchedule((), (Regime((2, 1, 2), 2),)),
        (3, 3, 5), (2, 2, 2), (0.5,), heads=2, head_dim=8, smooth_k=True,
    ),
    # int8 codes of Q and K
    "int8": Case(
        StepSchedule((), (Regime((1, 2, 2), 1),)),
        (3, 3, 5), (2, 2, 2), (0.5,), heads=1, head_dim=16, codes="int8",
    ),
    # all three; D = 2^3, so that q and k are rotated by matrices of unlike size
    "rotated": Case(
        StepSchedule((0.5,), (Regime((2, 2, 1), 1), Regime((1, 2, 3), "head")), shift=1.0),
        (3, 3, 5), (2, 2, 2), (0.75, 0.25), heads=1, head_dim=8, smooth_k=True, codes="int8", rotate="hadamard",
    ),
}  # fmt: skip


def build() -> dict[str, Arrays]:
    """All golden vectors: {file name without .npz: {array name: array}}."""
    cases = {name: _build_case(case, seed) for seed, (name, case) in enumerate(CASES.items())}
    return {"numbers": _build_numbers(), "schedule": _build_schedule(), **cases}


def _build_case(case: Case, seed: int) -> Arrays:
    plan = case.attention("fp32").plan(case.grid, torch.tensor(case.sigma))
    tokens = plan.layout.tokens
    inputs = draw_inputs((len(case.sigma), case.heads, tokens, case.head_dim), plan, seed)
    if case.unlike:
        inputs = make_unlike(inputs)
    if case.options:
        inputs = give_k_a_mean(inputs)
    schedule = case.attention("fp32").step_schedule
    regimes = [schedule.regimes[i] for i in schedule.regime_index(torch.tensor(case.sigma)).tolist()]
    windows = torch.tensor([regime.window_in_tiles(plan.layout.tiles) for regime in regimes])
    granularities = [0 if regime.granularity == "head" else regime.granularity for regime in regimes]
    arrays = {
        "grid": np.array(case.grid, np.int32), "tile": np.array(case.tile, np.int32),
        "block": np.array(case.block, np.int32), "windows": np.array(_as_given(regimes, windows), np.int32),
        "granularity": np.array(granularities, np.int32), **case.options, **inputs, **_build_tables(plan, windows),
    }  # fmt: skip
    groups = torch.stack([tile_groups(plan.layout, regime.granularity) for regime in regimes])
    arrays["groups"] = groups.int().numpy()
    if case.rotate:
        rotated = rotate_channels(*(torch.from_numpy(inputs[name]) for name in "qk"))
        arrays |= {f"{name}_rotated": x.numpy() for name, x in zip("qk", rotated, strict=True)}
    for scale_format in FORMATS:
        arrays |= _build_codes(arrays, case, plan, groups, scale_format)
        arrays |= _build_outputs(inputs, case, scale_format)
    return arrays


def _as_given(regimes: list[Regime], windows: Tensor) -> list[list[int]]:
    """Windows in tiles, where they were given in tiles also beyond the axis: a port has to cut them."""
    rows = zip(regimes, windows.tolist(), strict=True)
    return [[x if isinstance(x, int) else w for x, w in zip(one.window, row, strict=True)] for one, row in rows]


def draw_inputs(shape: tuple[int, int, int, int], plan: Plan, seed: int) -> Arrays:
    """q, k, v and grad_out [B, H, tokens, D]: random whole numbers, with what ports trip over put in."""
    generator = np.random.RandomState(seed)  # draws the same numbers in every numpy
    tile_of_token = plan.layout.tile_of_slot[plan.layout.slot_of_token].numpy()
    first, second, third, last = (np.flatnonzero(tile_of_token == i) for i in (0, 1, 2, tile_of_token.max()))
    arrays = {}
    for name in ("q", "k", "v", "grad_out"):
        x = generator.randint(-32, 33, (4, *shape)).sum(0).clip(-104, 104) * UNIT
        x = x * 2.0 ** generator.randint(-1, 1, (*shape[:3], 1))
        if name in ("q", "k"):
            x[:, :, first] = _with_tie(x[:, :, first], 3.25, 2.4375)  # the reciprocal of its scale gives another code
            x[:, :, second] = _with_tie(x[:, :, second], 3.5, 2.125)  # a scale of 2^-7, which pow2 must keep
            x[:, :, third[0]] *= 2.0**-11  # codes below 2^-6 and codes that become 0
        if name == "q":
            x[:, :, last] = 0  # a scale of 1
        if name == "v":
            x[:, :, second] *= 4  # what one scale a tile would treat apart
            x[..., :1] = _with_tie(x[..., :1], 3.875, 2.90625)
            x[..., 1] = 0
        arrays[name] = x.astype(np.float32)
    return arrays


def make_unlike(inputs: Arrays) -> Arrays:
    """Times another power of two for each sample, each head, and q, k and v: what is shared between them shows."""
    powers = {"q": lambda b, h: b - h, "k": lambda b, h: 2 * h - b - 2, "v": lambda b, h: b + 3 * h}
    sample, head = (i[..., None, None] for i in np.indices(inputs["q"].shape[:2]))
    return inputs | {name: inputs[name] * np.exp2(power(sample, head)) for name, power in powers.items()}


def give_k_a_mean(inputs: Arrays) -> Arrays:
    """K with a channel per head that is large everywhere; sums over tokens and channels are exact in fp32."""
    k = np.rint(inputs["k"] * 64) / 64
    for head in range(k.shape[1]):
        k[:, head, :, 2 + head] = 16 * (-1) ** head + np.rint(k[:, head, :, 2 + head] * 8) / 8
    return inputs | {"k": k.astype(np.float32)}


def _with_tie(x: np.ndarray, amax: float, tie: float) -> np.ndarray:
    """x [..., n, d] with this amax, and with numbers whose quotient by the scale is as near as can be to a tie."""
    x = x.clip(-amax, amax)
    x[..., 0, 0], x[..., 1, 0], x[..., 2, 0] = amax, tie, -tie
    return x


def _build_tables(plan: Plan, windows: Tensor) -> Arrays:
    """Order, windows, masks and block lists."""
    layout, bm = plan.layout, plan.oracle_block_mask
    b, h, slot = torch.arange(len(windows)), torch.zeros(1, dtype=torch.int64), torch.arange(layout.slots)
    mask = sliding_tile_mask_mod(layout, windows)(b[:, None, None], h, slot[:, None], slot)
    mask = mask.expand(len(windows), layout.slots, layout.slots)
    lists = {
        "partial": _as_lists(bm.kv_num_blocks, bm.kv_indices),
        "full": _as_lists(bm.full_kv_num_blocks, bm.full_kv_indices),
    }
    kinds = sum(kind * _as_map(*lists[name]) for kind, name in ((1, "partial"), (2, "full")))
    return {
        "slot_of_token": layout.slot_of_token.int().numpy(), "tile_of_slot": layout.tile_of_slot.int().numpy(),
        "valid": layout.valid.numpy(), "coords_of_tile": layout.coords_of_tile.T.contiguous().numpy(),
        "tile_mask": tile_mask(layout, windows).numpy(), "mask": mask.numpy(),
        "density": density(layout, windows).numpy(), "block_kinds": kinds.astype(np.uint8),
        **{f"{name}_counts": counts for name, (counts, _) in lists.items()},
        **{f"{name}_blocks": blocks for name, (_, blocks) in lists.items()},
    }  # fmt: skip


def _as_lists(counts: Tensor, indices: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of [B, 1, blocks] counts and [B, 1, blocks, blocks] indices, without heads; what is never read becomes -1."""
    counts, indices = counts[:, 0].numpy(), indices[:, 0].numpy()
    return counts, np.where(np.arange(indices.shape[-1]) < counts[..., None], indices, -1)


def _as_map(counts: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """1 at every listed block."""
    row = np.zeros((*indices.shape[:2], indices.shape[2] + 1), np.int32)
    np.put_along_axis(row, indices, 1, axis=-1)  # -1 lands in the column that is cut off
    return row[..., :-1]


def _build_codes(inputs: Arrays, case: Case, plan: Plan, groups: Tensor, scale_format: str) -> Arrays:
    """amax, scales and codes, from slots whose pads hold junk."""
    layout, arrays = plan.layout, {}
    for name in ("q", "k", "v"):
        x, mean = _slots(inputs[f"{name}_rotated" if case.rotate and name != "v" else name], layout), None
        codes = "e4m3" if name == "v" else case.codes
        if name == "v":
            at_slots = channel_scales(x, layout, scale_format)
            amax, scale = x[:, :, layout.valid].abs().amax(2), at_slots[:, :, 0]
        else:
            amax = tile_amax(x, layout)
            if name == "k" and case.smooth_k:
                stats = key_stats(x, layout)
                mean = mean_of_tokens(stats.total, layout.tokens)
                amax, arrays["k_mean"] = centred_tile_amax(stats, mean, layout), mean.numpy()
            scale = scale_of(pool_amax(amax, groups), scale_format, codes)
            at_slots = scales_at_slots(amax, layout, groups, scale_format, codes)
        arrays |= {
            f"{name}_amax": amax.numpy(), f"{name}_scale_{scale_format}": scale.numpy(),
            f"{name}_codes_{scale_format}": layout.unorder(quantize(x, at_slots, None, codes, mean), dim=2).numpy(),
        }  # fmt: skip
        if codes == "e4m3":
            bits = quantize(x, at_slots, torch.float8_e4m3fn, mean=mean).view(torch.uint8)
            arrays[f"{name}_bits_{scale_format}"] = layout.unorder(bits, dim=2).numpy()
    return arrays


def _slots(x: np.ndarray, layout: TileLayout) -> Tensor:
    return layout.order(torch.from_numpy(x), dim=2).masked_fill(~layout.valid[:, None], PAD)


def _build_outputs(inputs: Arrays, case: Case, scale_format: str) -> Arrays:
    """The output and the gradients in raster order, computed in float64 and kept in float32."""
    attention = case.attention(scale_format)
    plan = attention.plan(case.grid, torch.tensor(case.sigma))
    leaves = [torch.from_numpy(inputs[name]).double().requires_grad_() for name in ("q", "k", "v")]
    pads = ~plan.layout.valid[:, None]
    slots = (plan.layout.order(x, dim=2).masked_fill(pads, PAD) for x in leaves)
    out = plan.layout.unorder(attention(*slots, plan), dim=2)
    grads = torch.autograd.grad(out, leaves, torch.from_numpy(inputs["grad_out"]).double())
    return {
        f"{name}_{scale_format}": x.detach().float().numpy()
        for name, x in zip(("out", "dq", "dk", "dv"), (out, *grads), strict=True)
    }


def _build_numbers() -> Arrays:
    """Single numbers: every e4m3 value, the ties between them and their neighbours in fp32; and scales of amaxes."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    ties = (values[:-1] + values[1:]) / 2
    x = np.concatenate([values, ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(1e9)), [463, 464, 1e30]])
    x = np.concatenate([x, -x]).astype(np.float32)
    codes = round_e4m3(torch.from_numpy(x))
    amax = np.array([0, 1e-45, 1e-37, 2**-7 * 448, 0.875, 1, 3.25, 3.5, 448, 449, 896, 1e4, 3e38], np.float32)
    scales = {f"scale_{form}": scale_of(torch.from_numpy(amax), form).numpy() for form in FORMATS}
    bits = codes.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return {"x": x, "codes": codes.numpy(), "bits": bits, "amax": amax, **scales}


def _build_schedule() -> Arrays:
    """Regimes and windows of the presets that share shift 5.

    50 evenly spaced steps meet both bounds of `fps` exactly; the last levels are before, within and past the slack.
    """
    sigma = torch.cat([sampling_levels(50, 5.0), *(levels_around(bound, 5.0) for bound in (0.3, 0.7))])
    tiles = [(3, 5, 10), (3, 4, 7), (3, 5, 14), (4, 6, 10), (1, 1, 1), (2, 3, 25), (2, 3, 5)]
    arrays = {
        "sigma": sigma.numpy(), "shift": np.array(5.0), "tiles": np.array(tiles, np.int32),
        "progress": preset("fps").progress(sigma).numpy(),
    }  # fmt: skip
    for name in ("fps", "sta", "uniform"):
        schedule = preset(name)
        arrays |= {
            f"{name}_bounds": np.array(schedule.bounds),
            f"{name}_extents": np.array([[_share(extent) for extent in regime.window] for regime in schedule.regimes]),
            f"{name}_regime": schedule.regime_index(sigma).numpy(),
            f"{name}_windows": np.array([schedule.windows(axes) for axes in tiles], np.int32),
        }
    return arrays


def levels_around(bound: float, shift: float) -> Tensor:
    """Noise levels of a progress 2e-5 and 5e-6 below a bound, and 5e-6 past it."""
    u = 1 - bound - torch.tensor([-2e-5, -5e-6, 5e-6], dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).float()


def _share(extent: Extent) -> float:
    """Of an axis; the whole of it is 1.0 here, where presets have no windows in tiles. Raises ValueError for tiles."""
    if isinstance(extent, int):
        raise ValueError(f"a preset's window is {extent} tiles, expected a share of the axis or the whole axis")
    return 1.0 if extent is None else extent


def main(out: Path = Path("docs/golden")) -> None:
    """Write the golden vectors, a file per case.

    Args:
        out: folder to write into.
    """
    check_writable(out, "--out")
    for name, arrays in build().items():
        with beside(out / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    auto_cli(main)
