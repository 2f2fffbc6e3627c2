"""AdamW whose momenta wait in the host's memory: the bits of torch's, wherever they wait, and the same checkpoints."""

import gc
import shutil
import weakref
from collections.abc import Mapping

import pytest
import torch
from lightning.fabric.utilities.optimizer import _optimizer_to_device
from safetensors.torch import load_file

from tests.helpers.commands import ROOT, refused, run_apart
from tests.helpers.handing_over import hand_over
from tests.helpers.lora_run import lora_words, train_words, write_base
from tests.helpers.tiny_run import all_tensors, same_tensors, tiny_words
from tests.helpers.together import run_in_turn
from train.fit import main
from train.host_memory import HostMemory
from train.offloaded import OffloadedAdamW
from train.optimizers import build_optimizer, check_optimizer

ADAMW = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = ((64, 130), (5,), (3, 2, 1, 2, 2), (0, 7), (), (33,))
UNUSED = 5  # of the shapes: gets no gradient


def draw_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def take_steps(optimizer, first, last):
    parameters = optimizer.param_groups[0]["params"]
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.grad = None if index == UNUSED else gradient
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()


def made(offload, dtype=torch.float32):
    return build_optimizer("adamw", draw_parameters(dtype), **ADAMW, offload=offload)


def stand_in_for_a_gpu(monkeypatch, note=lambda copy: None):
    """What an optimizer brings to a parameter is a copy then, as it isn't on one and the same device."""
    to = torch.Tensor.to

    def bring(tensor, *where, non_blocking=None):
        if non_blocking is None:
            return to(tensor, *where)
        note(copy := tensor.clone())
        return copy

    monkeypatch.setattr(torch.Tensor, "to", bring)


def assert_same(one, other):
    for x, y in zip(one.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(x, y)
    states = [x.state_dict() for x in (one, other)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    states = [x["state"] for x in states]
    assert states[0].keys() == states[1].keys() == set(range(len(SHAPES))) - {UNUSED}
    for index, momenta in states[0].items():
        assert list(momenta) == list(states[1][index]) == ["step", "exp_avg", "exp_avg_sq"]
        for name, x in momenta.items():
            y = states[1][index][name]
            assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device) and torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [False, True], ids=["on the host", "elsewhere"])
def test_steps_are_those_of_torch_to_the_bit(monkeypatch, dtype, apart):
    """elsewhere: what comes to a parameter is a copy, as on a GPU, and must go back."""
    plain, offloaded = made(False, dtype), made(True, dtype)
    take_steps(plain, 0, 4)
    if apart:
        stand_in_for_a_gpu(monkeypatch)
    take_steps(offloaded, 0, 4)
    assert_same(plain, offloaded)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_each_goes_on_from_what_the_other_saved(tmp_path, before, after):
    whole, first, second = made(False), made(before), made(after)
    take_steps(whole, 0, 5)
    take_steps(first, 0, 2)
    hand_over(first, second, tmp_path / "state.pt")
    take_steps(second, 2, 5)
    assert_same(whole, second)


def test_a_saved_momentum_brings_no_other_along():
    """A storage is saved whole, whatever part of it a tensor is."""
    optimizer = made(True)
    take_steps(optimizer, 0, 1)
    for momenta in optimizer.state_dict()["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            assert momenta[name].untyped_storage().nbytes() == momenta[name].nbytes


def test_only_one_parameters_momenta_leave_the_host_at_a_time(monkeypatch):
    """On one stream; what left is counted while it is held."""
    away, most = weakref.WeakSet(), []

    def note(copy):
        away.add(copy)
        most.append(len(away))

    stand_in_for_a_gpu(monkeypatch, note)
    take_steps(made(True), 0, 2)
    assert len(most) == 2 * 2 * (len(SHAPES) - 1) and max(most) == 2 and not away


def test_who_moves_an_optimizers_state_moves_no_momenta():
    """As Lightning does after loading, here to where nothing comes back from."""
    optimizer, plain = made(True), made(False)
    for x in (optimizer, plain):
        take_steps(x, 0, 1)
        _optimizer_to_device(x, torch.device("meta"))
    devices = [x.state_dict()["state"][0]["exp_avg"].device.type for x in (optimizer, plain)]
    assert devices == ["cpu", "meta"]


class OneAtATime(Mapping):
    """Momenta that are read when they are asked for; each must be gone when the next one is."""

    def __init__(self, momenta, alive):
        self.momenta, self.alive = momenta, alive

    def __getitem__(self, name):
        assert not self.alive, "two are in memory"
        read = self.momenta[name].clone()
        if name != "step":
            self.alive.add(read)
        return read

    def __iter__(self):
        return iter(self.momenta)

    def __len__(self):
        return len(self.momenta)


def test_what_is_loaded_is_read_one_tensor_at_a_time():
    plain, offloaded, alive = made(False), made(True), weakref.WeakSet()
    take_steps(plain, 0, 3)
    state = plain.state_dict()
    offloaded.load_state_dict(state | {"state": {i: OneAtATime(x, alive) for i, x in state["state"].items()}})
    for x, y in zip(offloaded.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        x.data.copy_(y)
    assert_same(plain, offloaded)


class Gpu:
    """Stands in for the CUDA runtime: notes what is pinned."""

    def __init__(self, monkeypatch, code=0):
        self.pinned, self.code = {}, code
        monkeypatch.setattr(torch.cuda, "cudart", lambda: self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "check_error", self._check)

    def cudaHostRegister(self, address, size, flags):
        self.pinned[address] = size
        return self.code

    def cudaHostUnregister(self, address):
        del self.pinned[address]
        return 0

    def _check(self, code):
        if code:
            raise torch.cuda.CudaError.__new__(torch.cuda.CudaError, "out of memory")


def test_memory_is_pinned_in_one_piece_of_the_bytes_it_takes_and_given_back(monkeypatch):
    gpu = Gpu(monkeypatch)
    tensors = [torch.empty(shape, device="meta") for shape in ((513, 1025), (7,), (0,), (3,))]
    memory = HostMemory(tensors, pinned=True)
    cut = [memory.zeros_like(x) for x in tensors]
    assert [x.shape for x in cut] == [x.shape for x in tensors] and all(x.device.type == "cpu" for x in cut)
    ((start, size),) = gpu.pinned.items()
    exact = sum(x.nbytes for x in tensors)
    assert exact <= size == memory.size < exact + 64 * len(tensors)
    spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in cut if x.numel())
    assert start <= spans[0][0] and spans[-1][1] <= start + size
    assert all(end <= following for (_, end), (following, _) in zip(spans, spans[1:], strict=False))
    for number, x in enumerate(cut):
        assert not x.any()
        x.fill_(number)
    del memory
    gc.collect()
    assert not gpu.pinned and all((x == number).all() for number, x in enumerate(cut)), "still there, if not pinned"


@pytest.mark.parametrize(("numbers", "pinned"), [(9, True), (2**58, False)])
def test_memory_that_is_not_to_be_had_is_one_line(monkeypatch, numbers, pinned):
    """Not to be pinned, or more than any machine has."""
    Gpu(monkeypatch, code=2)
    line = r"^the optimizer's momenta can't wait in [\d.]+ GB of the host's memory \(.*\): set model.offload_[^\n]*$"
    with pytest.raises(RuntimeError, match=line):
        HostMemory([torch.empty(numbers, device="meta")], pinned)


FAR_MESH = """
import sys, torch
from pathlib import Path
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from train.shares import local_part, shared_as, write_share
torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
mesh = DeviceMesh("cuda", torch.arange(2))
rows = torch.empty(3, 4, device="meta")
parameter = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=(5, 4), stride=(4, 1))
waiting = torch.arange(12.0).view(3, 4)
momentum = shared_as(waiting, parameter)
assert momentum.shape == (5, 4) and momentum.device.type == "cpu"
assert local_part(momentum).data_ptr() == waiting.data_ptr()
states = {"state": {0: {"step": torch.ones(()), "exp_avg": momentum}}, "param_groups": []}
checkpoint = {"state_dict": {}, "current_model_state": {}, "optimizer_states": [states]}
write_share(checkpoint, Path(sys.argv[1]), 0, 2)
"""


def test_what_waits_is_written_from_the_host_though_the_mesh_is_of_gpus(tmp_path):
    """A process of two that were never started: no GPU is asked for anything."""
    done = run_apart("-c", FAR_MESH, tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "shard-00001-of-00002.safetensors")
    assert torch.equal(written["optimizer/0/exp_avg"], torch.arange(12.0).view(3, 4))


def test_8_bits_with_it_are_one_line(tmp_path, capsys):
    check_optimizer("adamw", 1e-15, sharded=True, offload=True)
    line = refused(
        capsys, main, tiny_words(tmp_path / "run", "--model.optimizer=adamw8bit", "--model.offload_optimizer=true")
    )
    assert "model.offload_optimizer is of adamw, and model.optimizer is adamw8bit" in line


OFFLOAD, HALF, RESUME = "--model.offload_optimizer=true", "--trainer.max_steps=2", "--ckpt_path=last"
RUN = (
    *("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.accumulate_grad_batches=2"),
    *("--trainer.gradient_clip_val=0.01", "--trainer.enable_progress_bar=false", "--data.batch_size=1"),
    *("--model.lr=0.01", "--model.wan.dim=72", "--model.wan.heads=4", "--model.wan.ffn_dim=99", "--model.wan.layers=2"),
)
WAYS = {"kept": ([OFFLOAD], [OFFLOAD]), "left": ([OFFLOAD], []), "taken up": ([], [OFFLOAD])}


def words(run, *options):
    return tiny_words(run, *RUN, *options)


def last(run):
    return all_tensors(run / "checkpoints/last.ckpt")


def test_a_run_with_it_is_one_without_however_it_is_resumed(tmp_path):
    """On a CPU, where momenta are on the host anyway."""
    main(words(tmp_path / "without"))
    assert isinstance(train_words(words(tmp_path / "with", OFFLOAD)).optimizers().optimizer, OffloadedAdamW)
    expected = last(tmp_path / "without")
    assert same_tensors(last(tmp_path / "with"), expected)
    for name, (first, then) in WAYS.items():
        main(words(tmp_path / name, HALF, *first))
        main(words(tmp_path / name, RESUME, *then))
        assert same_tensors(last(tmp_path / name), expected), name


def test_a_lora_with_it_is_one_without(tmp_path):
    base = write_base(tmp_path / "base")
    for name, options in {"without": [], "with": [OFFLOAD]}.items():
        train_words(lora_words(tmp_path / name, base, "--model.base=bf16", *options))
    assert same_tensors(last(tmp_path / "with"), last(tmp_path / "without"))


@pytest.mark.slow
def test_processes_that_share_the_model_train_the_same_with_it(tmp_path):
    """Folders and files, of as many processes and of others."""
    base = write_base(tmp_path / "base")
    lora = ["--model.base=bf16", "--parallel.shard=true", "--data.batch_size=1"]
    main(words(tmp_path / "of one", HALF))
    for name in ("from one", "from one, with"):
        shutil.copytree(tmp_path / "of one", tmp_path / name)
    lines = [
        words(tmp_path / "without"),
        words(tmp_path / "with", OFFLOAD),
        *(words(tmp_path / name, HALF, *first) for name, (first, _) in WAYS.items()),
        *(words(tmp_path / name, RESUME, *then) for name, (_, then) in WAYS.items()),
        words(tmp_path / "to one", HALF, OFFLOAD),
        words(tmp_path / "from one", RESUME),
        words(tmp_path / "from one, with", RESUME, OFFLOAD),
        lora_words(tmp_path / "lora", base, *lora),
        lora_words(tmp_path / "lora, with", base, *lora, OFFLOAD),
    ]
    _, told, codes = run_in_turn(tmp_path, 2, *(("train.fit", line) for line in lines))
    assert codes == [[0, 0]] * len(lines), told
    shutil.copytree(tmp_path / "to one", tmp_path / "to one, with")
    main(words(tmp_path / "to one", RESUME))
    main(words(tmp_path / "to one, with", RESUME, OFFLOAD))

    assert (tmp_path / "with/checkpoints/last.ckpt").is_dir()
    for name in ("with", *WAYS):
        assert same_tensors(last(tmp_path / name), last(tmp_path / "without")), name
    for name in ("from one", "to one", "lora"):
        assert same_tensors(last(tmp_path / f"{name}, with"), last(tmp_path / name)), name
