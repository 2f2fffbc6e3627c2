"""Junk in the place of every argument of the public functions: a sane result, or an error that names the argument."""

import json
import random
import re
from dataclasses import asdict, fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fps_flex import (
    FPSAttention,
    Plan,
    Regime,
    StepSchedule,
    TileLayout,
    density,
    plan_tile,
    preset,
    sliding_tile_block_mask,
    sliding_tile_mask_mod,
)
from fps_flex.masks import as_windows
from fps_flex.quant import check_granularity, tile_groups
from fps_flex.wan import WanConfig
from fps_flex.wan.export import export
from fps_flex.wan.files import open_files
from fps_flex.wan.trained import read_training_checkpoint
from fps_flex.wan.weights import SETTINGS, load_wan, open_weights, read_settings

GRID, SMALL = (4, 4, 6), {"tile": (2, 2, 2), "block": 8}
NAN, INF = float("nan"), float("inf")
JUNK = [
    None, "", "no", "1", "fps", "head", True, False, 0, -1, 1, 2, 3.0, 1.0, 0.5, -0.5, NAN, INF, -INF, 2**31, 2**70,
    10**400, 1j, b"abc", Fraction(1, 3), [], (), {}, {1}, (1, 2), (1, 2, 3), (2, 2, 2, 2), [1, 2, 2], (1.0, 1, 1),
    (True, 1, 1), (0, 1, 1), (-1, 1, 1), (NAN, 1, 1), ("1", 1, 1), (None, 1, 0.5), (2**70, 1, 1), (10**6,) * 3,
    ((1,),), [[1, 2, 3], [1, 2, True]], [(1, 1, 1), (1, 1)], {"window": (1, 1, 1)}, {"a": {"b": {}}}, {"regimes": None},
    object(), print, int, np.int64(2), np.float32(0.5), np.bool_(True), np.array([1, 2, 2]), torch.float32,
    torch.device("cpu"), torch.zeros(0), torch.zeros(()), torch.zeros(2), torch.ones(2, 2), torch.tensor([NAN, 0.5]),
    torch.tensor([0.5, 2]), torch.tensor([1, 0]), torch.tensor([True, False]), torch.tensor([0.5, 0.5]).bfloat16(),
    torch.zeros(2, dtype=torch.cfloat), torch.zeros(2, device="meta"), torch.ones(2, 3, dtype=torch.int64),
    torch.zeros(2, 1, 96, 8), Regime(), StepSchedule(), (Regime(),), (Regime(), None, 3), (0.3, 0.7), (0.7, 0.3),
    (0.5, NAN), ("0.3", 0.7), "\0", "x" * 5000,
]  # fmt: skip


def refused(function, names, **arguments):
    """The result; None where it is refused in one line that names one of the arguments."""
    try:
        return function(**arguments)
    except (ValueError, TypeError) as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2500, line
        assert any(re.search(rf"\b{name}", line) for name in names), (names, line)
        return None


def is_plain(attention):
    """Whether every option has exactly the type that it says, so that equal ones are the same."""
    window = [x for regime in attention.schedule.regimes for x in regime.window]
    return (
        all(type(x) in (int, float, type(None)) for x in window)
        and type(attention.block) is int
        and type(attention.quantize) is type(attention.sparse) is bool
        and (attention.tile is None or [type(x) for x in attention.tile] == [int] * 3)
        and FPSAttention.from_dict(json.loads(json.dumps(asdict(attention)))) == attention
    )


def attend(**arguments):
    """From options to an output, on whatever grid the tile fits."""
    attention = FPSAttention(**arguments)
    assert is_plain(attention)
    return attention


@pytest.mark.parametrize("name", [field.name for field in fields(FPSAttention)])
def test_options_of_the_attention(name):
    base = {"schedule": "fps", **SMALL}
    for junk in JUNK:
        attention = refused(attend, [name, "schedule"], **{**base, name: junk})
        if attention is not None:
            refused(attention.plan, ["tile", "block"], grid=GRID, sigma=torch.tensor([0.5]))
    with pytest.raises(TypeError, match="nothing"):
        FPSAttention(nothing=1)


def paths_of(data, path=()):
    """Every key in nested dicts and lists."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths_of(value, (*path, key))


def damaged(data, rng):
    """A copy with one value replaced by junk, or taken out, or one added."""
    data = json.loads(json.dumps(data))
    *owners, last = path = rng.choice(list(paths_of(data)))
    owner = data
    for key in owners:
        owner = owner[key]
    how = rng.choice(["replace", "replace", "replace", "drop", "add"])
    if how == "replace":
        owner[last] = rng.choice(JUNK)
    elif how == "drop":
        del owner[last]
    elif isinstance(owner, dict):
        owner["unknown"] = 1
    return data, [str(key) for key in path if isinstance(key, str)] + ["unknown", "regimes"]


def test_dicts_of_attentions():
    rng = random.Random(0)
    record = json.loads(json.dumps(asdict(FPSAttention(**SMALL))))
    assert FPSAttention.from_dict(record) == FPSAttention(**SMALL)
    for _ in range(400):
        data, names = damaged(record, rng)
        attention = refused(FPSAttention.from_dict, names, data=data)
        assert attention is None or is_plain(attention)
    for junk in JUNK:
        assert refused(FPSAttention.from_dict, ["attention"], data=junk) is None
    with pytest.raises(ValueError, match="attention lacks tile, block and has an unknown 'blocks': expected exactly"):
        FPSAttention.from_dict({**{x: y for x, y in record.items() if x not in SMALL}, "blocks": 8})
    with pytest.raises(ValueError, match="quantize is 'no', expected True or False"):
        FPSAttention.from_dict({**record, "quantize": "no"})


def test_regimes_schedules_and_granularities():
    layout, tiles = TileLayout(GRID, **SMALL), (4, 6, 10)
    for junk in JUNK:
        regime = refused(Regime, ["window"], window=junk)
        assert regime is None or all(1 <= w <= n for w, n in zip(regime.window_in_tiles(tiles), tiles, strict=True))
        refused(Regime().window_in_tiles, ["tiles"], tiles=junk)
        regime = refused(Regime, ["granularity"], granularity=junk)
        assert regime is None or regime.granularity in (None, "head") or type(regime.granularity) is int
        groups = refused(tile_groups, ["granularity"], layout=layout, granularity=junk)
        assert groups is None or groups.shape == (12,) and groups.min() >= 0
        refused(check_granularity, ["granularity"], granularity=junk)
        assert refused(tile_groups, ["layout"], layout=junk, granularity=1) is None
        for name in ("bounds", "regimes", "shift"):
            schedule = refused(StepSchedule, [name, "regimes"], **{name: junk})
            ends = torch.tensor([1.0, 0.0])
            assert schedule is None or schedule.regime_index(ends).tolist() == [0, len(schedule.bounds)]
        schedule = refused(preset, ["schedule"], name=junk)
        assert schedule is None or junk == "fps"
        regime = refused(StepSchedule().regime_index, ["sigma"], sigma=junk)
        assert regime is None or junk.shape == regime.shape and ((junk >= 0) & (junk <= 1)).all()
        refused(StepSchedule().progress, ["sigma"], sigma=junk)


def test_layouts_and_planned_tiles():
    x = torch.zeros(1, 96, 2)
    layout = TileLayout(GRID, **SMALL)
    for junk in JUNK:
        for name in ("grid", "tile", "block", "device"):
            made = refused(TileLayout, [name], **{"grid": GRID, **SMALL, name: junk})
            assert made is None or 1 <= made.slots < 2**31 and type(made.block) is int
        for name in ("grid", "volume", "volumes", "aspect", "block"):
            given = {"grid": (6, 9, 10), "volume": 40, "volumes": (20, 80), "aspect": 3, "block": 16, name: junk}
            tile = refused(plan_tile, [name, "grid"], **given)
            assert tile is None or len(tile) == 3 and min(tile) >= 1
        for method, name in ((layout.order, "tokens"), (layout.unorder, "slots")):
            refused(method, [name], **{name: junk})
            refused(method, ["dim", name], **{name: x, "dim": junk})


def test_windows_in_tiles():
    layout = TileLayout(GRID, **SMALL)
    for junk in JUNK:
        for make in (as_windows, density, sliding_tile_block_mask, sliding_tile_mask_mod):
            made = refused(make, ["windows"], windows=junk, layout=layout)
            assert make is not as_windows or made is None or made.dtype == torch.int32 and (made >= 1).all()
            assert refused(make, ["layout"], windows=(1, 1, 1), layout=junk) is None
    huge = (2**32 + 1, 2**40, 2**70)
    assert density(layout, huge) == density(layout, (2, 2, 3)) == 1
    assert density(layout, torch.tensor(huge[:2] + (2**62,))) == 1


def test_calls():
    attention = FPSAttention(**SMALL)
    plan = attention.plan(GRID, torch.tensor([0.5, 0.9]))
    x = torch.randn(2, 1, 96, 8)
    for junk in JUNK:
        refused(attention.plan, ["grid", "tile"], grid=junk, sigma=torch.tensor([0.5]))
        made = refused(attention.plan, ["sigma"], grid=GRID, sigma=junk)
        assert made is None or isinstance(made, Plan) and len(made.quantized) == len(junk)
        refused(attention.engine_for, ["q"], q=junk)
        for call in (attention, attention.over_tokens):
            for name in ("q", "k", "v", "plan"):
                out = refused(call, [name], **{"q": x, "k": x, "v": x, "plan": plan, name: junk})
                assert out is None or out.shape == x.shape
            out = refused(call, ["q"], q=junk, k=junk, v=junk, plan=plan)
            assert out is None or out.shape == x.shape
    for shape in ((2, 0, 96, 8), (2, 1, 96, 0), (2, 1, 0, 8)):
        with pytest.raises(ValueError, match="q, k, v have shape"):
            attention(*[torch.zeros(shape)] * 3, plan)
    with pytest.raises(ValueError, match="q, k, v are on meta, meta, meta, expected the plan's cpu"):
        attention(*[x.to("meta")] * 3, plan)


def test_a_grid_too_large_for_any_memory_is_refused_before_it_is_built():
    with pytest.raises(ValueError, match="takes 1000000000 slots, expected at most|takes .* blocks of 8 slots"):
        FPSAttention(**SMALL).plan((1000, 1000, 1000), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="slots, expected at most 2147483647"):
        TileLayout((4096, 4096, 4096), (8, 8, 8), 128)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (torch.tensor([0.5, 1.5]), r"sigma is \[0.5, 1.5\], expected noise levels from 0"),
        (torch.tensor([-0.1]), "expected noise levels from 0"),
        (torch.tensor([500.0]), "expected noise levels from 0"),
        (torch.tensor([NAN]), r"sigma is \[nan\], expected noise levels"),
        (
            torch.tensor(0.5),
            r"sigma is a tensor of shape \(\), torch.float32 on cpu, expected one noise level a sample",
        ),
        (torch.zeros(0), r"shape \(0,\)"),
        (torch.tensor([[0.5]]), r"shape \(1, 1\)"),
        (torch.tensor([1]), "torch.int64"),
        (0.5, "sigma is 0.5, expected a tensor"),
    ],
    ids=str,
)
def test_a_bad_sigma_is_named(sigma, message):
    for call in (FPSAttention(**SMALL).plan, lambda grid, sigma: StepSchedule().regime_index(sigma)):
        with pytest.raises(ValueError, match=message):
            call(GRID, sigma)


def test_sigma_may_be_off_its_ends_by_rounding():
    """As shifted levels are: 3.3 * 1 / (1 + 2.3 * 1) in fp32."""
    assert StepSchedule().regime_index(torch.tensor([1 + 1.2e-7, -1.2e-7])).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schedule": "uniform"}, "schedule"),
        ({"schedule": StepSchedule(shift=3.0)}, "schedule"),
        ({"schedule": replace(StepSchedule(), bounds=(0.3, 0.6))}, "schedule"),
        ({"tile": (2, 2, 3)}, "tile"),
        ({"block": 4}, "block"),
        ({"quantize": False}, "schedule"),
        ({"sparse": False}, "schedule"),
        ({"scale_format": "pow2"}, "scale_format"),
        ({"carrier": "float8"}, "float8"),
    ],
    ids=str,
)
def test_a_plan_of_another_attention_is_refused(change, what):
    ours, other = FPSAttention(**SMALL), FPSAttention(**{**SMALL, **change})
    x = torch.randn(1, 1, 96, 8)
    plan = other.plan(GRID, torch.tensor([0.5]))
    for call in (ours, ours.over_tokens):
        with pytest.raises(ValueError, match=f"plan was made by an attention of another {what}, expected one of this"):
            call(x, x, x, plan)


def test_a_plan_of_an_equal_attention_or_of_another_engine_is_taken():
    x = torch.randn(1, 1, 96, 8)
    plan = FPSAttention("fps", **SMALL).plan(GRID, torch.tensor([0.5]))
    for same in (FPSAttention(StepSchedule(), **SMALL), FPSAttention(engine="eager", **SMALL)):
        assert same(x, x, x, plan).shape == x.shape


@pytest.mark.compiles
def test_in_a_compiled_graph_too_a_foreign_plan_is_refused_and_another_schedule_compiles_nothing():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def block(attention, x, plan):
        return attention(x, x, x, plan)

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend=backend)
    x, made = torch.randn(1, 1, 96, 8), []
    for schedule in (
        StepSchedule(),
        StepSchedule(regimes=[Regime((1, 2, 3), 2), Regime((2, 2, 1), 1), Regime((1, 1, 1), 3)]),
    ):
        attention = FPSAttention(schedule, **SMALL)
        for sigma in (0.99, 0.8, 0.1):
            made.append((attention, attention.plan(GRID, torch.tensor([sigma]))))
            torch.testing.assert_close(compiled(attention, x, made[-1][1]), block(attention, x, made[-1][1]))
    assert len(graphs) == 1
    with pytest.raises(torch._dynamo.exc.Unsupported, match="plan was made by an attention of another schedule"):
        compiled(made[0][0], x, made[-1][1])
    torch._dynamo.reset()


SIZES = {"dim": 48, "ffn_dim": 96, "heads": 2, "layers": 1, "channels": 4, "text_dim": 8, "freq_dim": 8,
         "patch": [1, 2, 2], "eps": 1e-6}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model, and what train.fit would have saved of it."""
    from fps_flex.wan import Wan

    model = Wan(WanConfig(**SIZES), FPSAttention(**SMALL))
    record = {"wan": asdict(model.config), "attention": asdict(model.attention), "noise_levels": [0.0, 1.0]}
    checkpoint = {
        "state_dict": {f"model.{name}": x for name, x in model.state_dict().items()},
        "fps_flex": json.loads(json.dumps(record)),
    }
    return model, checkpoint, tmp_path_factory.mktemp("tiny")


def test_arguments_of_the_readers(tiny, wan_folder):
    _, checkpoint, folder = tiny
    torch.save(checkpoint, folder / "whole.ckpt")
    weights, attention = open_weights(folder / "whole.ckpt"), FPSAttention(**SMALL)
    paths = ["path", "safetensors", "expected", "checkpoint"]
    for i, junk in enumerate(JUNK):
        for read in (open_weights, open_files, read_settings, read_training_checkpoint):
            assert refused(read, paths, path=junk) is None
        assert refused(open_weights, ["which"], path=folder / "whole.ckpt", which=junk) is None
        for name in ("attention", "device", "dtype"):
            given = {"path": folder / "whole.ckpt", "attention": attention, "device": "cpu", "dtype": None, name: junk}
            refused(load_wan, [name], **given)
        assert refused(export, ["weights"], weights=junk, folder=folder / "x", naming="official") is None
        assert refused(export, ["naming"], weights=weights, folder=folder / "x", naming=junk) is None
        given = {"weights": weights, "folder": folder / f"out{i}", "naming": "official", "shard_bytes": junk}
        refused(export, ["shard_bytes"], **given)
    with pytest.raises(ValueError, match="which is 'averag', expected one of average, live"):
        open_weights(folder / "whole.ckpt", "averag")
    with pytest.raises(ValueError, match="naming is 'oficial', expected one of official, diffusers"):
        export(weights, folder / "x", "oficial")


@pytest.mark.parametrize("name", ["state_dict", "current_model_state", "fps_flex"])
def test_checkpoints_with_damaged_fields(tiny, name):
    _, checkpoint, folder = tiny
    path = folder / "damaged.ckpt"
    kept = [junk for junk in JUNK if not callable(junk) and type(junk).__module__ in ("builtins", "torch")]
    kept = [junk for junk in kept if not (isinstance(junk, tuple) and any(isinstance(x, Regime) for x in junk))]
    for junk in kept:
        torch.save({**checkpoint, name: junk}, path)
        for read in (open_weights, read_settings):
            made = refused(read, ["is no checkpoint of this project", "is no text-to-video"], path=path)
            assert made is None or junk == {} and name == "current_model_state" or read is read_settings
    for lacking, message in (
        ({"wan": SIZES}, r"it lacks fps_flex.attention and fps_flex.noise_levels\)"),
        ({}, r"it lacks fps_flex.wan and fps_flex.attention and fps_flex.noise_levels\)"),
        ({**checkpoint["fps_flex"], "attention": "fps"}, "its fps_flex.attention is a str, expected a dict"),
        ({**checkpoint["fps_flex"], "wan": None}, "its fps_flex.wan is a NoneType, expected a dict"),
    ):
        torch.save({**checkpoint, "fps_flex": lacking}, path)
        for read in (open_weights, read_settings):
            with pytest.raises(ValueError, match=f"is no checkpoint of this project .*{message}"):
                read(path)


def test_checkpoints_and_exports_whose_attention_or_sizes_are_damaged(tiny):
    _, checkpoint, folder = tiny
    rng = random.Random(1)
    for i in range(150):
        record, _ = damaged(checkpoint["fps_flex"], rng)
        try:
            (folder / SETTINGS).write_text(json.dumps(record, default=str))
        except (TypeError, ValueError):
            continue
        made = refused(read_settings, ["doesn't say its attention"], path=folder)
        assert made is None or is_plain(made[1])
        if i % 5 == 0:
            torch.save({**checkpoint, "fps_flex": json.loads((folder / SETTINGS).read_text())}, folder / "said.ckpt")
            refused(open_weights, ["is no checkpoint of this", "is no text-to-video"], path=folder / "said.ckpt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no Wan transformer"),
        ('{"num_heads": "two"}', "holds no Wan transformer"),
        ('{"num_heads": -1}', "holds no Wan transformer|is no text-to-video"),
        ('{"num_heads": 2, "eps": "small"}', "eps is 'small', expected a number"),
    ],
)
def test_a_config_json_of_another_kind_is_refused(tiny, tmp_path, text, message):
    model, *_ = tiny
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_weights(tmp_path)


def test_files_without_tensors_or_with_quantised_ones_are_refused(tiny, tmp_path):
    model, *_ = tiny
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="holds no tensors"):
        open_weights(tmp_path / "empty.safetensors")
    for index in ('{"weight_map": {}}', '{"weight_map": {"a": 3}}', '{"weight_map": [1]}', "[]"):
        (tmp_path / "x.safetensors.index.json").write_text(index)
        with pytest.raises(ValueError, match="holds no tensors|is no index of shards"):
            open_weights(tmp_path / "x.safetensors.index.json")
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2}))
    tensors = {name: x.to(torch.int8) if name.endswith("ffn.0.weight") else x for name, x in model.state_dict().items()}
    save_file(tensors, tmp_path / "int8.safetensors")
    with pytest.raises(ValueError, match="ffn.0.weight is of torch.int8, expected floating-point weights"):
        load_wan(tmp_path / "int8.safetensors", FPSAttention(**SMALL), dtype=torch.bfloat16)


def test_options_in_diffusers(tiny):
    from fps_flex.diffusers import install, install_trained
    from tests.helpers.tiny_wan import tiny_transformer

    _, checkpoint, folder = tiny
    torch.save(checkpoint, folder / "whole.ckpt")
    transformer = tiny_transformer()
    for junk in JUNK:
        assert refused(install, ["transformer"], transformer=junk) is None
        for name in ("schedule", "tile", "block", "quantize", "scale_format", "engine"):
            refused(install, [name], **{"transformer": transformer, **SMALL, name: junk})
        assert refused(install_trained, ["path", "expected"], transformer=transformer, path=junk) is None
    for call in (install, lambda x, **options: install_trained(x, folder / "whole.ckpt", **options)):
        with pytest.raises(ValueError, match="got blocks=16, expected options of FPSAttention: schedule, tile, "):
            call(transformer, blocks=16)
