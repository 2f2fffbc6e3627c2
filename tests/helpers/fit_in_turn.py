"""Command lines of train.fit in turn, in the same processes: torchrun tests/helpers/fit_in_turn.py FILE.json"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from train.fit import main  # noqa: E402

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="LightningCLI.s args")
    for words in json.loads(Path(sys.argv[1]).read_text()):
        main(words)
