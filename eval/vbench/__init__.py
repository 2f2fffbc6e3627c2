"""VBench: from a checkpoint, or any folder of videos, to a report. `python -m eval.vbench --help`."""
