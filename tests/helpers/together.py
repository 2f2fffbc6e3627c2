"""Several processes of this machine that compute together, over gloo."""

import json
import random
import socket
from itertools import islice

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tests.helpers.commands import run_apart

PORTS = range(20_000, 32_000)


def run_together(function, processes, folder):
    """What function(rank) returned in each process. It is a module's own, and finds the others in dist's world."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    multiprocessing.spawn(_run, (function, processes, address, str(folder)), nprocs=processes)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(processes)]


def _run(rank, function, processes, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    torch.save(function(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_in_turn(folder, processes, *lines, timeout=300):
    """Commands one after another, each by all processes under torchrun, started once.

    lines: (command, words). Returns torchrun's end, what the processes wrote, and each command's exit codes by rank.
    """
    file = folder / f"lines-{processes}.json"
    ports = free_ports(len(lines))
    commands = [[port, name, [*map(str, words)]] for port, (name, words) in zip(ports, lines, strict=True)]
    file.write_text(json.dumps(commands))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", processes, "tests/helpers/in_turn.py", file]
    done = run_apart(*launch, timeout=timeout, OMP_NUM_THREADS="1")
    codes = [
        [int(path.read_text()) if (path := folder / f"{file.name}.{i}.{rank}").exists() else None
         for rank in range(processes)]
        for i in range(len(lines))
    ]  # fmt: skip
    return done.returncode, done.stdout + done.stderr, codes


def free_ports(count):
    """Below those that the system deals out: until they are used, connections of the processes would take one."""
    ports = (port for port in random.SystemRandom().sample(PORTS, len(PORTS)) if _is_free(port))
    return [*islice(ports, count)]


def _is_free(port):
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
