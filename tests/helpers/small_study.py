"""The study's way with a command, of one that works until it is told to stop, and then saves.

python -m tests.helpers.small_study OUT MINUTES      the study; MINUTES: 0 for no limit
python -m tests.helpers.small_study OUT              the command, which leaves OUT/begun, and OUT/saved
"""

import sys
import time
from pathlib import Path

from train.common.start import start


def command():
    from eval.study.run import run_tasks
    from eval.study.tasks import Task
    from train.common.console import cli_errors

    out, minutes = Path(sys.argv[1]), float(sys.argv[2])
    task = Task("wait", ("tests.helpers.small_study", str(out)))
    with cli_errors("stopped; it goes on"):
        print("done" if run_tasks([task], out, [None], minutes or None) else "the time is up")


def work(out):
    (out / "begun").touch()
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        time.sleep(0.5)
        (out / "saved").touch()
        sys.exit(130)


if __name__ == "__main__":
    start("tests.helpers.small_study") if len(sys.argv) > 2 else work(Path(sys.argv[1]))
