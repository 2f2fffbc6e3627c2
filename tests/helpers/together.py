"""Several processes of this machine that compute together, over gloo."""

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_together(function, processes, folder):
    """What function(rank) returned in each process. It is a module's own, and finds the others in dist's world."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    multiprocessing.spawn(_run, (function, processes, address, str(folder)), nprocs=processes)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(processes)]


def _run(rank, function, processes, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
