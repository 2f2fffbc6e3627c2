"""AdamW's momenta in the host's memory, its parameters on a GPU."""

import gc

import pytest
import torch

from tests.helpers.handing_over import hand_over
from train.optimizers import build_optimizer

pytestmark = pytest.mark.gpu

ADAMW = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(2048, 2048)] * 24 + [(5,), (0, 7), (), (1027, 513)]
MOMENTUM = 4 * 2048 * 2048  # bytes of the largest


def made(offload):
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = [torch.nn.Parameter(torch.randn(x, generator=generator, device="cuda")) for x in SHAPES]
    return build_optimizer("adamw", drawn, **ADAMW, offload=offload)


def take_steps(optimizer, first, last):
    """What is queued before a step and after it is in its order."""
    for step in range(first, last):
        generator = torch.Generator("cuda").manual_seed(step)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator, device="cuda").mul_(2).div_(3)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(optimizer.param_groups[0]["params"], 0.99)


def assert_same(one, other):
    for x, y in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(x, y)
    for momenta, others in zip(*(x.state_dict()["state"].values() for x in (one, other)), strict=True):
        assert all(torch.equal(x.cpu(), others[name].cpu()) for name, x in momenta.items())


def test_steps_are_those_of_torch_to_the_bit_and_momenta_wait_pinned():
    plain, offloaded = made(False), made(True)
    for optimizer in (plain, offloaded):
        take_steps(optimizer, 0, 4)
    assert_same(plain, offloaded)
    for momenta in offloaded.state_dict()["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            x = momenta[name]
            assert x.device.type == "cpu" and (x.is_pinned() or not x.numel())


def test_only_two_parameters_momenta_are_on_the_gpu_at_a_time():
    optimizer = made(True)
    take_steps(optimizer, 0, 1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert MOMENTUM < torch.cuda.max_memory_allocated() - before < 5 * MOMENTUM


@pytest.mark.parametrize("before", [False, True])
def test_each_goes_on_from_what_the_other_saved(tmp_path, before):
    whole, first, second = made(False), made(before), made(not before)
    take_steps(whole, 0, 4)
    take_steps(first, 0, 2)
    hand_over(first, second, tmp_path / "state.pt")
    take_steps(second, 2, 4)
    assert_same(whole, second)


def test_memory_is_given_back_and_may_be_pinned_again():
    for _ in range(3):
        optimizer = made(True)
        take_steps(optimizer, 0, 1)
        del optimizer
        gc.collect()
