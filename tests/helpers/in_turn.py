"""Commands in turn, in the same processes: torchrun tests/helpers/in_turn.py FILE.json

FILE: a list of [port, command, words], such as [29500, "train.fit", ["--run", "x"]]. What a command ends a process with
is written to FILE.<its number>.<rank>; what the last one does ends the process.
"""

import json
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

COMMANDS = {
    "train.fit": ("train.fit", "main"),
    "eval.generate": ("eval.generate.command", "command"),
    "eval.bench": ("eval.bench.command", "command"),
}


def run(name, words):
    """The exit code."""
    module, function = COMMANDS[name]
    try:
        getattr(import_module(module), function)(words)
    except SystemExit as ended:
        return ended.code
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="LightningCLI.s args")
    # a store for each command: some end the group of their processes, and the next begins one anew
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    code = 0
    for i, (port, name, words) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        os.environ["MASTER_PORT"] = str(port)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which a command that refuses ignores at its end
        code = run(name, words)
        Path(f"{sys.argv[1]}.{i}.{os.environ['RANK']}").write_text(str(code))
    sys.exit(code)
