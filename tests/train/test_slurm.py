"""The script for SLURM, with an srun that starts its tasks on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT
from tests.helpers.tiny_run import tiny_words
from train.checkpoints import trained_steps

SCRIPT = ROOT / "configs/slurm/train.sbatch"
STARTS = """
while [[ $1 == --* ]]; do shift; done
for i in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks="$tasks $!"; done
if [ -n "$STOP" ]; then  # as at the end of the job's time
    until [ -e "$STOP" ]; do sleep 0.2; done
    kill -USR1 $tasks
fi
code=0
for task in $tasks; do wait $task || code=$?; done
exit $code
"""
NOTES = 'printf "%s\\n" "$@" > "$NOTES/$(basename $0).given"\n'
JOB = {
    "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "fps-flex", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
    "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def program(folder, name, body):
    (folder / name).write_text("#!/bin/bash\n" + NOTES + body)
    (folder / name).chmod(0o755)


def submit(folder, *words, srun, **environment):
    """What bash made of the script, and the words that srun and scontrol were given."""
    program(folder, "srun", srun)
    program(folder, "scontrol", "")
    done = subprocess.run(
        ["bash", SCRIPT, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, **JOB, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
             "NOTES": str(folder), **environment},
    )  # fmt: skip
    return done, {x.stem: x.read_text().splitlines() for x in folder.glob("*.given")}


def test_bash_understands_it():
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    options = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "--signal=USR1@600" in options and "--ntasks-per-node=8" in options


@pytest.mark.parametrize("code", [0, 1, 2, 130, 138, 143])
def test_a_job_goes_into_the_queue_again_where_its_time_was_up_and_ends_as_its_tasks_do(tmp_path, code):
    done, given = submit(tmp_path, "--config", "a b.yaml", srun=f"exit {code}")
    assert done.returncode == code and given.get("scontrol") == (["requeue", "17"] if code == 138 else None)
    assert given["srun"] == [
        *("--kill-on-bad-exit=0", "--wait=120", "python", "-m", "train.fit", "--config", "a b.yaml"),
        *("--ckpt_path", "last-if-any", "--trainer.devices", "2", "--trainer.num_nodes", "1"),
    ]


@pytest.mark.slow
def test_two_tasks_train_as_one_run_are_stopped_and_go_on(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "bin"
    folder.mkdir()
    words = tiny_words(run, "--trainer.max_steps=200", "--checkpoint.every_n_train_steps=1")
    last = run / "checkpoints/last.ckpt"
    done, given = submit(folder, *words, srun=STARTS, STOP=str(last))
    assert done.returncode == 138 and given["scontrol"] == ["requeue", "17"], done.stdout + done.stderr
    assert "processes  2, with a share of the model each" in done.stdout and last.is_dir()
    stopped = max(trained_steps(path) for path in run.glob("checkpoints/*.ckpt"))
    assert 1 <= stopped < 200
    done, _ = submit(folder, *words, f"--trainer.max_steps={stopped + 2}", srun=STARTS, STOP="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert trained_steps(last) == stopped + 2 and (run / "sample.mp4").is_file()
