"""eval.study told to stop: its commands hear it, save what they have, and none outlives it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def begin(out, minutes=0.0, ignored=()):
    """A study of one command, which is under way. ignored: signals, as its parent had it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.small_study", str(out), str(minutes)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: [signal.signal(x, signal.SIG_IGN if x in ignored else signal.SIG_DFL) for x in SIGNALS],
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (out / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (out / "begun").exists()
    return process


def nothing_is_left_of(out):
    return subprocess.run(["pgrep", "-f", str(out)], capture_output=True).stdout == b""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("everyone", [False, True], ids=["one", "group"])
def test_a_signal_however_often_ends_it_in_one_line_and_its_command_saves(tmp_path, number, everyone):
    process = begin(tmp_path)
    for _ in range(3):  # as `timeout` and people do
        (os.killpg if everyone else os.kill)(process.pid, number)
        time.sleep(0.1)
    said = process.communicate(timeout=60)
    assert said[1] == "error: stopped; it goes on\n" and "wait was stopped" in said[0]
    assert process.returncode == 128 + number and (tmp_path / "saved").exists() and nothing_is_left_of(tmp_path)


@pytest.mark.parametrize("minutes", [0.05, 0], ids=["time is up", "SIGTERM"])
def test_its_command_hears_it_where_the_study_was_started_with_sigint_ignored(tmp_path, minutes):
    """As a script's shell starts what ends in &."""
    process = begin(tmp_path, minutes, ignored=[signal.SIGINT])
    if not minutes:
        process.terminate()
    said = process.communicate(timeout=60)
    assert (tmp_path / "saved").exists() and nothing_is_left_of(tmp_path)
    assert process.returncode == (0 if minutes else 143) and ("the time is up" in said[0]) is bool(minutes)


def test_under_nohup_it_outlives_its_terminal(tmp_path):
    process = begin(tmp_path, ignored=[signal.SIGHUP])
    os.killpg(process.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and not (tmp_path / "saved").exists()
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143 and (tmp_path / "saved").exists()
