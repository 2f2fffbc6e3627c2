"""AdamW with momenta in fp32 or in 8 bits: the same bits after a stop, and plain tensors in a checkpoint."""

import pytest
import torch

from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.lora_run import lora_words, train_lora, write_base
from tests.helpers.tiny_run import read_checkpoint, tiny_words, train_tiny
from tests.train.stops import differences, end_of
from train.fit import main
from train.optimizers import build_optimizer, check_optimizer, pack, shape_of_momentum, unpack

EIGHT = ("--model.optimizer=adamw8bit", "--model.eps=1e-8")
WIDE = ("--model.lora.rank=32",)  # of tensors below 4096 numbers torchao keeps fp32
FOUR = ("--trainer.max_steps=4", "--trainer.val_check_interval=2")
ADAMW = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def stepped(name, parameters):
    """An optimizer after three steps."""
    optimizer = build_optimizer(name, parameters, **ADAMW)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def draw_parameters():
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 128), (5,))]  # of which torchao packs the first


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao")


def test_what_is_in_fp32_is_packed_as_it_is():
    momenta = stepped("adamw", draw_parameters()).state_dict()["state"]
    for made in (pack(momenta), unpack(momenta)):
        assert all(made[i][name] is x for i, momentum in momenta.items() for name, x in momentum.items())


def test_what_is_in_8_bits_is_packed_as_plain_tensors_and_unpacked_to_the_same_bits(torchao):
    momenta = stepped("adamw8bit", draw_parameters()).state_dict()["state"]
    packed = pack(momenta)
    assert isinstance(packed[0]["exp_avg"], dict) and type(packed[1]["exp_avg"]) is torch.Tensor
    assert all(type(packed[0]["exp_avg"][name]) is torch.Tensor for name in ("codes", "scale", "qmap"))
    assert packed[0]["exp_avg"]["codes"].dtype == torch.uint8
    assert shape_of_momentum(packed[0]["exp_avg"]) == shape_of_momentum(momenta[0]["exp_avg"]) == (64, 128)
    back = unpack(packed)
    for i, momentum in momenta.items():
        for name, value in momentum.items():
            assert type(back[i][name]) is type(value)
            plain, again = (x.dequantize() if hasattr(x, "codes") else x for x in (value, back[i][name]))
            assert torch.equal(plain, again) and value.dtype == back[i][name].dtype


@pytest.mark.parametrize("value", [None, 7, {}, {"codes": torch.ones(3)}, "codes"])
def test_what_is_no_momentum_has_no_shape(value):
    assert shape_of_momentum(value) is None


def test_an_unknown_one_and_an_eps_that_is_too_small_are_one_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="^model.optimizer is 'sgd', expected one of adamw, adamw8bit$"):
        check_optimizer("sgd", 1e-8)
    monkeypatch.setattr("train.optimizers.find_spec", lambda name: name)
    check_optimizer("adamw", 1e-15)
    check_optimizer("adamw8bit", 1e-8)
    for eps in ("1e-15", "9e-9"):
        line = refused(capsys, main, tiny_words(tmp_path / "run", "--model.optimizer=adamw8bit", f"--model.eps={eps}"))
        assert f"model.eps is {eps}" in line.replace("e-09", "e-9") and "expected at least 1e-08 with adamw8bit" in line


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_in_8_bits_a_resumed_run_ends_in_the_same_bits(torchao, tmp_path, lora):
    base = write_base(tmp_path / "base")

    def train(run, *options):
        return train_lora(run, base, *EIGHT, *WIDE, *options) if lora else train_tiny(run, *EIGHT, *options)

    train(tmp_path / "whole", *FOUR)
    train(tmp_path / "run", "--trainer.max_steps=2")
    train(tmp_path / "run", *FOUR, "--ckpt_path=last")
    whole, resumed = (dict(_flat(end_of(tmp_path / name))) for name in ("whole", "run"))
    assert any(name.endswith("codes") for name in whole) and not differences(whole, resumed)
    script = "import sys, torch; torch.load(sys.argv[1], weights_only=True); assert 'torchao' not in sys.modules"
    done = run_apart("-c", script, tmp_path / "run/checkpoints/last.ckpt")
    assert done.returncode == 0, done.stderr


def _flat(facts):
    """What is packed, as tensors of its own."""
    for name, value in facts.items():
        if isinstance(value, dict) and "codes" in value:
            yield from ((f"{name}: {part}", x) for part, x in value.items())
        else:
            yield name, value


@pytest.mark.slow
def test_a_run_does_not_change_its_optimizer(torchao, tmp_path, capsys):
    base = write_base(tmp_path / "base")
    train_lora(tmp_path / "run", base, *EIGHT)
    line = refused(capsys, main, lora_words(tmp_path / "run", base, "--ckpt_path=last"))
    assert 'model.optimizer was "adamw8bit", is "adamw"' in line
    assert len(read_checkpoint(tmp_path / "run")["optimizer_states"]) == 1


OWN_ROWS = """
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from train.optimizers import build_optimizer
torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
mesh = DeviceMesh("cpu", torch.arange(2))
rows, gradient = torch.arange(12.0).view(3, 4), torch.ones(3, 4)
shared = [DTensor.from_local(x.clone(), mesh, [Shard(0)], run_check=False, shape=(5, 4), stride=(4, 1))
          for x in (rows, gradient)]
parameter, whole = torch.nn.Parameter(shared[0]), torch.nn.Parameter(rows)
parameter.grad, whole.grad = shared[1], gradient
update, updated = torch._fused_adamw_, []
def note(*lists, **settings):
    updated.extend(x for tensors in lists for x in tensors)
    update(*lists, **settings)
torch._fused_adamw_ = note
for x in (parameter, whole):
    build_optimizer("adamw", [x], 0.1, (0.9, 0.99), 1e-8, 0.1).step()
assert len(updated) == 10 and not any(isinstance(x, DTensor) for x in updated)
assert torch.equal(parameter.to_local(), whole)
"""


def test_what_is_shared_out_is_updated_by_rows():
    """A process of two that were never started; as DTensors they take ten times the host's time."""
    done = run_apart("-c", OWN_ROWS, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
