"""Stop a training run anywhere, resume it, and hold its end against that of a run that was never stopped.

    python tests/train/stops.py --times 10

Each time a run is stopped at random moments, by each signal in turn, until it gets to its end. It must end in the same
bits: weights, averages, optimizer, best.ckpt, all logged losses and the sample.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from fps_flex.wan.trained import STATES  # noqa: E402
from train.callbacks import read_losses  # noqa: E402

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -signal.SIGKILL}
# 24 batches in 12 steps, of four validations of ten batches; saves, validations and the log have other intervals
OPTIONS = [
    "--trainer.max_steps=12", "--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=6",
    "--checkpoint.every_n_train_steps=3", "--trainer.log_every_n_steps=1", "--data.val_clips=10", "--data.batch_size=1",
    "--data.workers=2", "--sample.steps=40", "--sample.count=2", "--model.val_levels=2",
]  # fmt: skip


def command(run: Path, *options: str) -> list[str]:
    config = ["--config", "configs/tiny.yaml", "--run", str(run)]
    return [sys.executable, "-m", "train.fit", *config, *OPTIONS, *options]


def start(run: Path, *options: str) -> subprocess.Popen:
    """In a process group of its own, as a shell or a job scheduler starts it."""
    return subprocess.Popen(
        command(run, *options), cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def stop(process: subprocess.Popen, number: int, everyone: bool) -> tuple[int, str]:
    """Signal a run, or all processes of its group as well, and wait for its end."""
    (os.killpg if everyone else os.kill)(process.pid, number)
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def end_of(run: Path) -> dict[str, object]:
    """All that must be the same at the end of a run."""
    checkpoints = {name: torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")}
    facts: dict[str, object] = {f"losses: {name}": values for name, values in read_losses(run).items()}
    for name, checkpoint in checkpoints.items():
        facts[f"{name}: position"] = checkpoint["fps_flex"]["position"]
        facts[f"{name}: val/loss"] = checkpoint["fps_flex"]["val_loss"]
        for part in (x for x in STATES if x in checkpoint):
            facts |= {f"{name}: {part}: {key}": tensor for key, tensor in checkpoint[part].items()}
        for index, state in checkpoint["optimizer_states"][0]["state"].items():
            facts |= {f"{name}: optimizer: {index}: {key}": value for key, value in state.items()}
    facts["sample"] = (run / "sample.mp4").read_bytes()
    return facts


def differences(a: dict[str, object], b: dict[str, object]) -> list[str]:
    def same(x: object, y: object) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y

    return [name for name in sorted(a.keys() | b.keys()) if not (name in a and name in b and same(a[name], b[name]))]


def run_to_the_end(run: Path) -> None:
    output = start(run).communicate(timeout=120)[0]
    assert (run / "sample.mp4").is_file(), output


def run_with_stops(run: Path, numbers: list[int], everyone: bool, rng: random.Random, longest: float) -> list[str]:
    """Stop a run by each signal in turn, then let it end. Returns what each stop met, a line each."""
    met = []
    for number in numbers:
        resumes = ["--ckpt_path=last"] if any(run.glob("checkpoints/*.ckpt")) else []
        process = start(run, *resumes)
        wait = rng.uniform(0.5, longest)
        time.sleep(wait)
        code, output = stop(process, number, everyone)
        last_line = output.strip().splitlines()[-1] if output.strip() else ""
        met.append(f"{signal.Signals(number).name} after {wait:.1f} s: exit {code}; {last_line}")
        begun = any(run.glob("checkpoints/*.ckpt"))
        # before it listens, and after its end, a run has nothing to stop
        allowed = {EXIT_CODES[number], 0} | ({130, -number} if not begun or "stopped before" in output else set())
        assert code in allowed or code == -number, output
        assert "Traceback" not in output or "Seed set" not in output, output  # Python's own while it imports
        if code == 0:
            return met
    process = start(run, *(["--ckpt_path=last"] if any(run.glob("checkpoints/*.ckpt")) else []))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="runs for each kind of stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp()), help="where runs are kept")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    begun = time.monotonic()
    run_to_the_end(options.folder / "whole")
    longest = time.monotonic() - begun
    uninterrupted, failed = end_of(options.folder / "whole"), 0
    print(f"a whole run takes {longest:.1f} s")
    kinds = [(number, everyone) for number in EXIT_CODES for everyone in (False, True)]
    for number, everyone in kinds:
        for i in range(options.times):
            run = options.folder / f"{signal.Signals(number).name}-{'all' if everyone else 'one'}-{i}"
            met = run_with_stops(run, [number] * 3, everyone, rng, longest)
            wrong = differences(uninterrupted, end_of(run))
            failed += bool(wrong)
            print(
                f"{run.name}: {'DIFFERS in ' + ', '.join(wrong[:4]) if wrong else 'same bits'}",
                *met,
                sep="\n  ",
                flush=True,
            )
    print(f"{failed} of {len(kinds) * options.times} ended otherwise")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
