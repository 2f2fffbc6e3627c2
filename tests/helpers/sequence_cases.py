"""Attention and a Wan whose tokens are shared among processes, beside the same in one: run by all processes alike."""

from contextlib import contextmanager
from itertools import product

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from fps_flex import FPSAttention, Regime, StepSchedule
from fps_flex.wan import Wan, WanConfig, model
from fps_flex.wan.auto import Auto
from fps_flex.wan.collectives import Group
from fps_flex.wan.halo import Halo
from fps_flex.wan.sequence import Call, Whole
from fps_flex.wan.traffic import halo_traffic, ulysses_traffic
from fps_flex.wan.ulysses import Ulysses

KINDS = {"ulysses": Ulysses, "halo": Halo, "auto": Auto}
TRAFFIC = {Ulysses: ulysses_traffic, Halo: halo_traffic}
HEADS, HEAD_DIM = 12, 16
LEVELS = {"early": [0.99], "middle": [0.8], "late": [0.2], "mixed": [0.99, 0.2, 0.8]}
LAYERS = {"0": "dense", "2": Regime((1, 1, 1), 1)}  # more than what tiles are dealt out for, and less
MIXED = StepSchedule(regimes=(Regime((2, None, 0.5)), Regime((1, 2, None), "head"), Regime((2, 1, 2), 2)))


def attention_of(name, **options):
    options |= {
        "pow2": {"scale_format": "pow2"}, "unquantized": {"quantize": False}, "mixed": {"schedule": MIXED},
        "sta": {"schedule": "sta"}, "smooth": {"smooth_k": True}, "int8": {"codes": "int8"},
        "rotated": {"codes": "int8", "rotate": "hadamard", "scale_format": "pow2", "schedule": MIXED},
        "layers": {"schedule": MIXED, "layers": LAYERS, "codes": "int8"},
    }.get(name, {})  # fmt: skip
    return FPSAttention(**{"schedule": "fps", "tile": (2, 2, 3), "block": 8, **options})


ATTENTIONS = ("fps", "pow2", "sta", "unquantized", "mixed")
CASES = [
    *product(("ulysses", "halo"), (2,), ATTENTIONS, LEVELS, ("float32",)),
    *product(("ulysses", "halo"), (2,), ATTENTIONS, ("mixed",), ("bfloat16",)),
    *product(("ulysses", "halo"), (3, 4), ("fps", "mixed"), ("mixed",), ("float32", "bfloat16")),
    *product(("ulysses", "halo"), (2, 3), ("smooth", "int8", "rotated"), ("middle", "mixed"), ("float32", "bfloat16")),
    *product(("ulysses", "halo"), (2, 3), ("layers 0", "layers 1", "layers 2"), ("middle", "mixed"), ("float32",)),
]
WANS = [*product(KINDS, (2, 4), ("fps", "unquantized")), *product(("ulysses", "halo"), (2,), ("layers",))]


def call_of(attention, levels, dtype, heads=HEADS, head_dim=HEAD_DIM, grid=(5, 5, 8), device="cpu"):
    sigma = torch.tensor(levels)
    return Call(attention, attention.plan(grid, sigma.to(device)), sigma, heads, head_dim, dtype)


def draw(call):
    """q, k, v and the output's gradient; pads hold what would spoil every scale.

    Sums over tokens are exact in fp32, so that the mean of K is the same in whatever order they are added.
    """
    generator = torch.Generator().manual_seed(0)
    layout = call.plan.layout
    shape = (4, len(call.sigma), call.heads, layout.slots, call.head_dim)
    drawn = (torch.randn(shape, generator=generator) * 64).round().to(layout.device) / 64
    q, k, v, grad = drawn.masked_fill(~layout.valid[:, None], 1e4).to(call.dtype)
    return q, k, v, grad.masked_fill(~layout.valid[:, None], 0)


def leaves_of(share, call):
    """q, k, v and the output's gradient at a share's slots."""
    *leaves, grad = (share.split(x, dim=2) for x in draw(call))
    return [x.requires_grad_() for x in leaves], grad


def attend(sequence, call, layer=1):
    """Output and gradients of q, k, v at the slots of this process, and the bytes that either brought it."""
    share = sequence.share(call)
    leaves, grad = leaves_of(share, call)
    with counted() as forward:
        out = share.attend(layer)(*leaves)
    with counted() as backward:
        grads = torch.autograd.grad(out, leaves, grad)
    return [out.detach(), *grads], (sum(forward), sum(backward))


def compare(sequence, call, layer=1):
    """What processes give together, what one gives, the bytes that came, and the bytes that were promised."""
    got, counts = attend(sequence, call, layer)
    share, (expected, _) = sequence.share(call), attend(Whole(), call, layer)
    traffic = TRAFFIC[type(sequence)](call.in_layer(layer), sequence.group.size)
    promised = traffic.forward[sequence.group.rank], traffic.backward[sequence.group.rank]
    return got, [share.split(x, dim=2) for x in expected], counts, promised


def average(grad, sequence):
    if isinstance(sequence, Whole):
        return grad
    parts = [torch.empty_like(grad) for _ in range(sequence.group.size)]
    dist.all_gather(parts, grad.contiguous(), group=dist.distributed_c10d._resolve_process_group(sequence.group.name))
    return (sum(x.double() for x in parts) / sequence.group.size).to(grad.dtype)


@contextmanager
def counted():
    """Bytes that all_to_all brings this process from the others, each time, whoever calls it."""
    exchange, received = functional.all_to_all_single, []

    def count(x, outputs, inputs, group):
        own = outputs[dist.get_group_rank(dist.distributed_c10d._resolve_process_group(group), dist.get_rank())]
        received.append((sum(outputs) - own) * x.shape[1:].numel() * x.itemsize)
        return exchange(x, outputs, inputs, group)

    functional.all_to_all_single = count
    try:
        yield received
    finally:
        functional.all_to_all_single = exchange


CONFIG = WanConfig(dim=96, ffn_dim=160, heads=4, layers=3, channels=16, text_dim=32, freq_dim=64)


def build_wan(name, sequence=None, **options):
    torch.manual_seed(0)
    wan = Wan(CONFIG, attention_of(name), **options)
    for parameter in wan.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    wan.sequence = sequence or Whole()
    return wan


def step(wan):
    """Velocity and averaged gradients, by name, of a step on two samples."""
    generator = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(shape, generator=generator) for shape in ((2, 16, 5, 10, 16), (2, 5, 32)))
    velocity = wan(latents, torch.tensor([990.0, 500.0]), text)
    velocity.square().mean().backward()
    return velocity.detach(), {name: average(x.grad, wan.sequence) for name, x in wan.named_parameters()}


def run_all(rank):
    """Each case, as far as this process has a part in it."""
    groups = {size: dist.new_group(list(range(size))) for size in (2, 3, 4)}
    found = {"attention": {}, "wan": {}}
    for kind, size, name, levels, dtype in CASES:
        if rank < size:
            attention, _, layer = name.partition(" ")
            call = call_of(attention_of(attention), LEVELS[levels], getattr(torch, dtype))
            sequence = KINDS[kind](Group.of(groups[size]))
            found["attention"][kind, size, name, levels, dtype] = compare(sequence, call, int(layer or 1))
    for kind, size, name in WANS:
        if rank < size:
            sequence = KINDS[kind](Group.of(groups[size]))
            found["wan"][kind, size, name] = step(build_wan(name, sequence, checkpointing=True)), step(build_wan(name))
    return found


GPU_CASES = [*product(("ulysses", "halo"), ("fps", "pow2", "unquantized"), LEVELS)]


def run_on_gpus(rank):
    """Output and gradients of each case on kernels of a GPU, beside those of one GPU alone."""
    torch.cuda.set_device(rank)
    group, found = Group.of(dist.new_group(backend="nccl")), {}
    for kind, name, levels in GPU_CASES:
        attention = attention_of(name, block=128)
        call = call_of(attention, LEVELS[levels], torch.bfloat16, head_dim=64, device=f"cuda:{rank}")
        share = KINDS[kind](group).share(call)
        expected = [share.split(x, dim=2).cpu() for x in results(Whole().share(call), call)]
        found[kind, name, levels] = [x.cpu() for x in results(share, call)], expected
    return found


def results(share, call):
    """Output and gradients of q, k, v at a share's slots."""
    leaves, grad = leaves_of(share, call)
    out = share.attend(1)(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def run_compiled(rank):
    """The same of a Wan of compiled blocks, with either kind. On a CPU the oracle is compiled with them.

    The halo's by Inductor, whose collectives are Ulysses' too and more; of Ulysses that it is one graph, with its
    gradients, is shown by the front end of the compiler.
    """
    group, found = Group.of(dist.group.WORLD), {}
    for kind in ("halo", "ulysses"):
        wan = build_wan("fps", KINDS[kind](group), checkpointing=True, compiled=True)
        found[kind] = step(wan), step(build_wan("fps"))
        model._compiled_run = torch.compile(model._run, fullgraph=True, backend="aot_eager")
    return found
