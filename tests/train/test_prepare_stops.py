"""train.prepare stopped, killed, and by several processes: the set is the same, bit for bit."""

import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers.commands import run_apart
from tests.helpers.preparing import contents, prepare, prepare_words, start_preparing, times
from train.common.lock import locked
from train.common.work import PATIENCE, wait_for_all
from train.index import read_index
from train.prepare import pack


def test_two_in_one_folder_are_one_and_a_refusal(raw, small, tmp_path):
    out = tmp_path / "out"
    prepare(raw, out, small, "--stages=[scan]")
    with locked(out / "work"):  # POSIX gives a process its own locks again, so the other must be one
        done = run_apart("-m", "train.prepare", *prepare_words(raw, out, small))
    assert done.returncode == 2 and "is in use by process" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("choose another --out")


@pytest.mark.parametrize("step", ["write_index", "_remove_others", "save_whole"])
def test_stopped_while_shards_are_exchanged_nothing_encoded_is_lost(raw, small, out, few, encoded, monkeypatch, step):
    """The set has shards of another cut than the next packing makes."""
    wanted = {clip.name for clip in read_index(out).clips}
    original, calls = getattr(pack, step), []

    def fail(*arguments):
        calls.append(arguments)
        if step != "save_whole" or len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(pack, step, fail)
    with pytest.raises(SystemExit) as stopped:
        prepare(raw, out, small)
    assert stopped.value.code == 130
    assert {clip.name for clip in read_index(out).clips} == wanted  # a set that can be trained on, old or new
    written = {path: when for path, when in times(out / "shards").items() if not path.name.startswith(".")}
    monkeypatch.setattr(pack, step, original)
    prepare(raw, out, small)
    index = read_index(out)
    assert {clip.name for clip in index.clips} == wanted and encoded == []
    now = times(out / "shards")
    assert {f"shards/{path.name}" for path in now} == {clip.shard for clip in index.clips} and len(now) == 4
    assert all(written[path] == when for path, when in now.items() if path in written)


@pytest.mark.slow
def test_killed_at_random_moments_of_encoding_and_packing_gives_the_same_bytes(raw, small, prepared, tmp_path):
    out, rng, kills = tmp_path / "out", random.Random(1), 0
    prepare(raw, out, small, "--stages=[scan,cut,filter]")
    while kills < 4:
        process = start_preparing(raw, out, small, stderr=subprocess.DEVNULL)
        before, target = len(times(out)), rng.randint(1, 4)
        while process.poll() is None and len(times_if_still(out)) < before + target and not _packing(out):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        kills += process.poll() is None
        process.kill()
        if process.wait() == 0:
            shutil.rmtree(out / "shards", ignore_errors=True)  # nothing was left to kill: the last steps again
            (out / "index.json").unlink(missing_ok=True)
    prepare(raw, out, small)
    assert contents(out) == contents(prepared)


def times_if_still(folder):
    try:
        return times(folder)
    except FileNotFoundError:  # a file went while its folder was read
        return {}


def _packing(out):
    return (out / "shards").exists() and random.random() < 0.2


def test_processes_wait_for_the_slowest_without_a_limit(monkeypatch):
    import torch.distributed as dist

    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.update(timeout=timeout))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    wait_for_all()
    assert asked["timeout"] == PATIENCE and PATIENCE.days >= 365
    monkeypatch.undo()
    dist.init_process_group("gloo", timeout=PATIENCE, store=dist.HashStore(), rank=0, world_size=1)
    dist.barrier()  # gloo takes it
    dist.destroy_process_group()


def test_signals_leave_one_line(raw, small, tmp_path):
    process = start_preparing(
        raw, tmp_path / "out", small, "--text=tests.helpers.faulty_encoders.Slow", stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # it may be ignored where we run
    )  # fmt: skip
    while not (tmp_path / "out/contact.png").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    lines = process.communicate()[1].splitlines()
    assert process.returncode == 130 and lines[-1] == "error: stopped; the same command goes on where it was"
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_killed_at_random_points_and_started_again_gives_the_same_bytes(raw, small, prepared, tmp_path):
    out = tmp_path / "out"
    rng, kills, kept = random.Random(0), 0, {}
    while kills < 4:
        process = start_preparing(raw, out, small, stderr=subprocess.DEVNULL)
        started = time.time()
        while not out.exists() and process.poll() is None and time.time() < started + 300:
            time.sleep(0.005)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("work/*/*.json")}
        assert all(kept.get(path, when) == when for path, when in before.items())
        target = len(before) + rng.randint(1, 5)
        while len(list(out.rglob("work/*/*.json"))) < target and process.poll() is None:
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept |= {path: path.stat().st_mtime_ns for path in out.rglob("work/*/*.json")}
        if (out / "index.json").exists():
            break
    assert kills == 4
    prepare(raw, out, small)
    assert contents(out) == contents(prepared)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


@pytest.mark.slow
def test_two_processes_share_the_work_and_give_the_same_bytes(raw, small, prepared, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train.prepare")
    done = run_apart(*launch, *prepare_words(raw, tmp_path / "out", small), timeout=600, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(prepared)
