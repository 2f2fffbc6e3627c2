"""Folders of clips to compare with eval.fidelity."""

from eval.fidelity.pairs import Row, Video, pair_folders
from eval.fidelity.scores import measure
from tests.helpers.raw_clips import scene, write

SHAPE = {"height": 176, "width": 192}


def clip(path, frames=5, crf=20, seed=0, **shape):
    return write(path, scene(seed, frames=frames, **(shape or SHAPE)), crf=crf)


def write_two(folder):
    """Two folders with three pairs, whose names have a space, and one for the report."""
    for i in range(3):
        clip(folder / "with dense" / f"clip {i}.mp4", seed=i)
        clip(folder / "with fps" / f"clip {i}.mp4", seed=i, crf=32 + 4 * i)
    return folder / "with dense", folder / "with fps", folder / "report"


def write_small(folder):
    """As `write_two`, of frames that take no time."""
    for i in range(3):
        for name, crf in (("x", 20), ("y", 40)):
            clip(folder / name / f"clip {i}.mp4", seed=i, crf=crf, height=32, width=48)
    return folder / "x", folder / "y", folder / "report"


def measured(reference, candidate, out):
    """What is found of two folders, without a report."""
    rows = [Row("reference", reference), Row("candidate", candidate)]
    return measure(out, rows, [Video(name, name, name) for name in pair_folders(reference, candidate)])


def on(reference, candidate, out):
    """The words of the command."""
    return ["folders", f"--reference={reference}", f"--candidate={candidate}", f"--out={out}"]
