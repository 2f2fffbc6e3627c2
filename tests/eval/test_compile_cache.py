"""Graphs that one run compiles and the next one reads."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from eval.generate import command as generate
from eval.generate.compile_cache import SUFFIX, graphs_for, kept_graphs
from tests.helpers.commands import refused
from tests.helpers.tiny_run import tiny_checkpoint

RUN = """
import json, sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from eval.generate.compile_cache import kept_graphs

try:
    with kept_graphs(Path(sys.argv[1])):
        given = torch.arange(64.0)
        for factor in map(int, sys.argv[2]):
            assert torch.equal(torch.compile(lambda x: x.relu() * factor)(given), given * factor)
        if sys.argv[3:]:
            raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
print(json.dumps({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")}))
"""


def run(tmp_path, number, *args):
    """In a process whose own caches are empty. What was found in the folder and what was not, and what it says."""
    found = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "kept"), *args], capture_output=True, text=True, check=True,
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"own{number}")},
    )  # fmt: skip
    return json.loads(found.stdout), found.stderr


@pytest.mark.compiles
@pytest.mark.slow
def test_what_one_run_compiles_the_next_one_reads(tmp_path):
    """Also of one that is interrupted, and what a later one adds."""
    assert run(tmp_path, 1, "2", "stop")[0] == {"hit": 0, "miss": 1}
    (file,) = (tmp_path / "kept").iterdir()
    first = file.read_bytes()
    assert run(tmp_path, 2, "23")[0] == {"hit": 1, "miss": 1}
    assert len([*(tmp_path / "kept").iterdir()]) == 2 and file.read_bytes() == first
    assert run(tmp_path, 3, "23")[0] == {"hit": 2, "miss": 0} and len([*(tmp_path / "kept").iterdir()]) == 2


@pytest.mark.parametrize("content", [b"", b"no graphs", bytes(1000)])
def test_a_damaged_file_is_one_line(tmp_path, caplog, content):
    (tmp_path / f"{graphs_for()}-0123456789ab{SUFFIX}").write_bytes(content)
    with kept_graphs(tmp_path):
        pass
    (record,) = caplog.records
    assert (
        f"-0123456789ab{SUFFIX} can't be read, expected graphs of an earlier run: they are compiled anew"
        in record.getMessage()
    )


def test_another_version_or_gpu_is_left_alone_with_a_line(tmp_path, caplog):
    other = tmp_path / f"torch-2.9.0-triton-3.4.0-NVIDIA-H100-80GB-HBM3-0123456789ab{SUFFIX}"
    other.write_bytes(b"theirs")
    with kept_graphs(tmp_path):
        pass
    (record,) = caplog.records
    said = record.getMessage()
    assert (
        f"has graphs for torch-2.9.0-triton-3.4.0-NVIDIA-H100-80GB-HBM3, which are of no use to {graphs_for()}" in said
    )
    assert other.read_bytes() == b"theirs"


def test_a_name_has_version_and_machine(monkeypatch):
    monkeypatch.setattr("eval.generate.compile_cache.name_device", lambda: "NVIDIA H100 80GB/HBM3")
    monkeypatch.setattr("eval.generate.compile_cache.version", lambda name: "3.6.0")
    assert graphs_for() == f"torch-{torch.__version__}-triton-3.6.0-NVIDIA-H100-80GB-HBM3"


def test_nothing_is_kept_where_nothing_is_asked_for_or_compiled(tmp_path):
    with kept_graphs(None):
        pass
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="--compile_cache"), kept_graphs(file / "folder"):
        pass


def test_every_process_keeps_its_own(tmp_path, monkeypatch):
    """A graph's key has its GPU's number, so the first one's are of no use to the second."""

    def compiled(key):
        return lambda: (key.encode(), SimpleNamespace(artifacts={"inductor": [key]}))

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(torch.compiler, "save_cache_artifacts", compiled(f"cuda:{rank}"))
        with kept_graphs(tmp_path):
            pass
    assert sorted(file.read_bytes() for file in tmp_path.glob(f"*{SUFFIX}")) == [b"cuda:0", b"cuda:1"]


FLASH = "FLASH_ATTENTION_CUTE_DSL_CACHE_"


@pytest.mark.parametrize(
    "own", [{}, {"ENABLED": "0"}, {"ENABLED": "1", "DIR": "theirs"}], ids=["none", "off", "folder"]
)
def test_flash_attention_is_told_to_keep_its_kernels_there(tmp_path, monkeypatch, own):
    """While the graphs are, beside them and for the same machine, unless its user has told it otherwise."""
    for name in ("ENABLED", "DIR"):
        monkeypatch.delenv(FLASH + name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(FLASH + name, value)

    def told():
        return {name: os.environ[FLASH + name] for name in ("ENABLED", "DIR") if FLASH + name in os.environ}

    with suppress(KeyboardInterrupt), kept_graphs(tmp_path):
        assert told() == {"ENABLED": "1", "DIR": str(tmp_path / f"{graphs_for()}.kernels")} | own
        raise KeyboardInterrupt
    assert told() == own
    with kept_graphs(None):
        assert told() == own


def test_where_files_cannot_be_locked_flash_attention_is_told_nothing(tmp_path, monkeypatch, caplog):
    """It would wait for each lock and then fail."""
    monkeypatch.delenv(FLASH + "ENABLED", raising=False)

    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with kept_graphs(tmp_path):
        assert FLASH + "ENABLED" not in os.environ
    (record,) = caplog.records
    assert record.getMessage() == (
        f"no file can be locked in {tmp_path / graphs_for()}.kernels (No locks available): "
        "flash-attn-4's kernels are not kept"
    )
    assert not [*tmp_path.iterdir()]


def test_the_command_keeps_what_it_compiled(tmp_path, monkeypatch, capsys):
    """Graphs of whatever the run compiled; the dense oracle, which a CPU takes, compiles nothing."""
    folders = []
    monkeypatch.setattr(generate, "kept_graphs", lambda folder: folders.append(folder) or kept_graphs(folder))
    run = tiny_checkpoint(tmp_path / "run")
    words = [f"--checkpoint={run}", "--prompt=a", "--steps=1", f"--out={tmp_path / 'out'}"]
    generate.command([*words, f"--compile_cache={tmp_path / 'kept'}"])
    assert folders == [tmp_path / "kept"] and not [*folders[0].iterdir()]
    (tmp_path / "file").write_text("")
    assert "--compile_cache" in refused(capsys, generate.command, [*words, f"--compile_cache={tmp_path / 'file'}"])
