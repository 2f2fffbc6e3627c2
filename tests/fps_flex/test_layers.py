"""Layers with schedules of their own: named once, kept in files, and computed as if each had its own attention."""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from eval.fidelity.command import describe_attention, plan_rows
from eval.generate.sampling import build_scheduler, mean_density
from fps_flex import FPSAttention, Regime, StepSchedule, algorithm, preset
from fps_flex.compile import limited
from fps_flex.diffusers import install, install_trained
from fps_flex.wan import Wan, WanConfig
from fps_flex.wan.sequence import All, Whole
from fps_flex.wan.weights import load_wan, read_settings
from tests.helpers.stock_wan import OTHER, SAME, call, inputs, own_wan, tiny_transformer
from tests.helpers.tiny_run import read_checkpoint, train_tiny

NARROW = Regime((1, 1, 1), granularity=2)
SIZES = {"tile": (2, 2, 2), "block": 8}
CONFIG = WanConfig(dim=64, ffn_dim=96, heads=4, layers=5, channels=4, text_dim=8, freq_dim=8)
OWN = {"0-1": "dense", "4": NARROW}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ()),
        (None, ()),
        ({"0-1": "dense"}, (("0-1", preset("dense")),)),
        ({"3-3": "fps", 1: "sta"}, (("1", preset("sta")), ("3", preset("fps")))),
        ({"28-29": NARROW, "0": preset("uniform")}, (("0", preset("uniform")), ("28-29", StepSchedule((), (NARROW,))))),
        ({"2": {"window": [1, 1, 1], "granularity": 2}}, (("2", StepSchedule((), (NARROW,))),)),
        ({"2": {"granularity": "head"}}, (("2", StepSchedule((), (Regime(granularity="head"),))),)),
        ({"2": asdict(preset("sta"))}, (("2", preset("sta")),)),
        ([["00-01", "dense"]], (("0-1", preset("dense")),)),
    ],
    ids=str,
)
def test_layers_are_named_by_ranges_and_kept_by_their_numbers(given, expected):
    attention = FPSAttention(layers=given)
    assert attention.layers == expected
    assert FPSAttention.from_dict(json.loads(json.dumps(asdict(attention)))) == attention
    assert replace(attention, block=16).layers == expected and hash(attention) == hash(FPSAttention(layers=given))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"0-3": "dense", "3-4": "dense"}, "layers names 0-3 and 3-4, which overlap: name each layer once"),
        ({"1": "dense", 1: "dense"}, "layers names 1 and 1, which overlap"),
        ({"0-9": "dense", "2-3": "sta"}, "layers names 0-9 and 2-3, which overlap"),
        ({"3-1": "dense"}, "layers names '3-1', expected a layer from 0 up, or the first and the last of a range"),
        ({"-1": "dense"}, "layers names '-1', expected a layer from 0 up"),
        ({-1: "dense"}, "layers names -1, expected a layer from 0 up"),
        ({"first": "dense"}, "layers names 'first', expected a layer"),
        ({True: "dense"}, "layers names True, expected a layer"),
        ({1.0: "dense"}, "layers names 1.0, expected a layer"),
        ({"0": "paper"}, "layers 0: schedule is 'paper', expected one of fps, sta, uniform, dense"),
        ({"0": None}, "layers 0: schedule is None, expected a StepSchedule or one of"),
        ({"0": {"windows": [1, 1, 1]}}, "layers 0: schedule lacks bounds, regimes, shift and has an unknown 'windows'"),
        ({"0": {"window": [0, 1, 1]}}, r"layers 0: window is \(0, 1, 1\), expected three extents"),
        ("dense", "layers is 'dense', expected a mapping such as"),
        (["dense"], r"layers is \['dense'\], expected a mapping such as"),
        (7, "layers is 7, expected a mapping such as"),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_are_one_line(layers, message):
    with pytest.raises(ValueError, match=message) as raised:
        FPSAttention(layers=layers)
    assert "\n" not in str(raised.value)


def test_layers_that_are_not_there_are_named_by_whatever_has_the_layers():
    message = "layers names 2-5, 7, and the model has 5 layers: expected some of 0 to 4"
    attention = FPSAttention(**SIZES, layers={"0": "dense", "2-5": "dense", 7: "sta"})
    with pytest.raises(ValueError, match=message):
        Wan(CONFIG, attention)
    with pytest.raises(ValueError, match="layers names 2, and the model has 2 layers: expected some of 0 to 1"):
        install(tiny_transformer(), **SIZES, layers={2: "dense"})
    with pytest.raises(ValueError, match="rotate is hadamard and heads are of 12 channels, expected a power of two"):
        Wan(replace(CONFIG, dim=48), FPSAttention(**SIZES, rotate="hadamard"))
    with pytest.raises(ValueError, match="rotate is hadamard and heads are of 24 channels"):
        install(tiny_transformer(), **SIZES, rotate="hadamard")


class Apart(Whole):
    """Each layer has an attention of its own, with a plan of its own."""

    def share(self, call):
        return ApartShare(call)


class ApartShare(All):
    def attend(self, layer):
        attention = replace(self.call.attention, schedule=self.call.attention.schedule_of(layer), layers=None)
        return partial(attention, plan=attention.plan(self.call.plan.layout.grid, self.call.sigma))


@pytest.mark.parametrize("options", [{}, {"scale_format": "pow2"}, {"codes": "int8", "rotate": "hadamard"}], ids=str)
@pytest.mark.parametrize("schedule", ["fps", "sta", "uniform", "dense"])
def test_a_model_computes_as_if_each_layer_had_its_own_attention(schedule, options):
    torch.manual_seed(0)
    attention = FPSAttention(schedule, **SIZES, layers=OWN, **options)
    wan = Wan(CONFIG, attention)
    for parameter in wan.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = torch.randn(2, 4, 4, 8, 12), torch.tensor([980.0, 300.0]), torch.randn(2, 3, 8)
    velocity = wan(*inputs)
    velocity.square().mean().backward()
    grads = {name: x.grad for name, x in wan.named_parameters()}
    wan.sequence, wan.zero_grad = Apart(), wan.zero_grad(set_to_none=True)
    expected = wan(*inputs)
    expected.square().mean().backward()
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    for name, x in wan.named_parameters():
        torch.testing.assert_close(grads[name], x.grad, rtol=1e-2, atol=1e-4 * float(x.grad.abs().max()) + 1e-9)
    wan.sequence, wan.attention = Whole(), FPSAttention(schedule, **SIZES, **options)
    assert (wan(*inputs) - expected).norm() > 0.01 * expected.norm()


def test_layers_without_a_schedule_of_their_own_share_a_plan_and_all_share_a_layout():
    attention = FPSAttention("fps", tile=None, block=8, layers={"0-1": "dense", 7: "fps"})
    plan = attention.plan((8, 8, 16), torch.tensor([0.9]))
    assert plan.of_layer(2) is plan.of_layer(400) is plan
    assert plan.of_layer(0) is plan.of_layer(1) and plan.of_layer(0) is not plan
    assert plan.of_layer(0).layout is plan.layout and plan.layout.tile != (8, 8, 16)
    assert [x.quantized.tolist() for x in (plan, plan.of_layer(1), plan.of_layer(7))] == [[True], [False], [True]]
    assert not attention.is_dense and FPSAttention("dense", layers={2: "dense"}).is_dense
    assert not FPSAttention("dense", layers={2: "uniform"}).is_dense
    off = FPSAttention("fps", quantize=False, sparse=False, layers={2: "uniform"})
    assert off.is_dense and off.layers == (("2", preset("uniform")),)


def test_no_end_of_layers_takes_no_memory():
    plan = FPSAttention(**SIZES, layers={"3-99999999999": "dense"}).plan((2, 4, 4), torch.tensor([0.5]))
    assert plan.of_layer(10**9) is plan.of_layer(3) is not plan


@pytest.mark.compiles
def test_all_layers_are_one_graph():
    graphs = []
    backend = lambda graph, inputs: graphs.append(graph) or graph  # noqa: E731
    attend = limited(torch.compile(algorithm.attend_tokens, fullgraph=True, dynamic=False, backend=backend))
    x = torch.randn(3, 1, 2, 96, 8)
    for layers in (OWN, {"0": NARROW, "1-3": "dense", "4": "sta"}):
        attention = FPSAttention("fps", **SIZES, layers=layers, engine="eager")
        for sigma in (0.99, 0.5):
            plan = attention.plan((4, 4, 6), torch.tensor([sigma]))
            for layer in range(6):
                got = attend(attention.graph_key, "eager", *x, plan.of_layer(layer))
                torch.testing.assert_close(got, attention.over_tokens(*x, plan.of_layer(layer)))
    assert len(graphs) == 1


@pytest.mark.parametrize("schedule", ["fps", "sta"])
def test_a_stock_transformer_computes_what_our_own_wan_does(schedule, tmp_path):
    small = {"tile": (2, 2, 3), "block": 8, "scale_format": "fp32"}
    layers = {0: "dense", 1: Regime((1, 1, None), 1)}
    transformer = tiny_transformer()
    install(transformer, schedule, **small, layers=layers)
    found = call(transformer, (0.9, 0.4))
    with torch.no_grad():
        expected = own_wan(transformer, FPSAttention(schedule, **small, layers=layers))(*inputs((0.9, 0.4)))
    assert _relative(found, expected) < SAME
    install(transformer, schedule, **small)
    assert _relative(call(transformer, (0.9, 0.4)), found) > OTHER / 10
    install(transformer, schedule, **small, layers=layers)
    transformer.save_pretrained(tmp_path)
    install_trained(transformer, tmp_path)
    assert torch.equal(call(transformer, (0.9, 0.4)), found)
    assert read_settings(tmp_path)[1].layers == (("0", preset("dense")), ("1", StepSchedule((), (layers[1],))))


def _relative(x, expected):
    return ((x - expected).norm() / expected.norm()).item()


def test_a_run_trains_with_them_and_its_checkpoint_says_so(tmp_path, capsys):
    run = train_tiny(tmp_path / "run", "--model.attention.layers={0-1: dense, 2: {window: [1, 1, 1], granularity: 1}}")
    printed = capsys.readouterr().out
    assert "in layers  0-1: window (5, 2, 2) tiles, density 1.00, no quantisation" in printed
    assert "in layers  2: window (1, 1, 1) tiles, density 0.05, scales by granularity 1" in printed
    attention = FPSAttention.from_dict(read_checkpoint(run)["fps_flex"]["attention"])
    assert attention.layers == (("0-1", preset("dense")), ("2", StepSchedule((), (Regime((1, 1, 1), 1),))))
    assert load_wan(run / "checkpoints/last.ckpt", attention).attention == attention


def test_densities_are_means_over_layers_too():
    scheduler, grid = build_scheduler("unipc", 10, 5.0), (4, 8, 8)
    plain = FPSAttention("fps", **SIZES)
    alone = mean_density(plain, grid, scheduler, 4)
    assert alone == pytest.approx(mean_density(plain, grid, scheduler, 1)) and alone < 0.5
    half = mean_density(replace(plain, layers={"0-1": "dense"}), grid, scheduler, 4)
    assert half == pytest.approx((1 + alone) / 2)


def test_rows_that_are_compared_keep_their_layers_but_the_dense_one():
    attention = FPSAttention("fps", **SIZES, layers={"0-1": "sta"})
    rows = {name: x for name, _, x in plan_rows("a", None, attention)}
    assert list(rows) == ["dense", "quantised", "sparse", "joint"] and rows["dense"].is_dense
    assert describe_attention(rows["joint"]) == "FP8 and windows of fps, other in layers 0-1"
    only = FPSAttention("dense", **SIZES, layers={"2": "uniform"})
    assert [name for name, *_ in plan_rows("a", None, only)] == ["dense", "quantised", "sparse", "joint"]
