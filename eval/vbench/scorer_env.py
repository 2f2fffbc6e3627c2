"""The environment of the official VBench package, which can share none with this project: it needs numpy below 2."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from .official import find_weights, open_scorer
from .preflight import DETECTRON2

Torch = Literal["cpu", "cu118", "cu121", "cu124", "pip"]
CONSTRAINTS = Path(__file__).with_name("scorer-constraints.txt")
VBENCH = "vbench==0.1.5"
# the last torch that reads the official checkpoints as the official code asks it to, and its torchvision
TORCH = ("torch==2.5.1", "torchvision==0.20.1")
INDEX = "https://download.pytorch.org/whl"
TOOLS = ("setuptools", "wheel", "numpy")  # what some sources are built with, and don't say so
TRY = "import torch, torchvision, cv2, decord, clip, vbench; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)"


def setup_command(folder: Path, python: str = "python3.11", torch: Torch = "cpu") -> None:
    """Make an environment for the official VBench package, by pip; one that was begun is gone on with.

    No weights are downloaded. detectron2, which four dimensions need, is left to you, since it is built from source.

    Args:
        folder: where the environment goes.
        python: a Python 3.11, whose environment it becomes.
        torch: cpu or a CUDA version from PyTorch's own index, or pip for what pip's index has: on Linux a CUDA build,
            which works without a GPU too.
    """
    check_python(python)
    own = folder / "bin" / "python"
    if not own.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and no virtual environment: choose another folder")
        _run([python, "-m", "venv", str(folder)])
    build, index = ("", []) if torch == "pip" else (f"+{torch}", ["--extra-index-url", f"{INDEX}/{torch}"])
    torches = [f"{package}{build}" for package in TORCH]
    for packages in (TOOLS, [*index, *torches], ["--no-build-isolation", VBENCH]):
        _run([str(own), "-m", "pip", "install", "-c", str(CONSTRAINTS), *packages])
    _run([str(own), "-I", "-W", "ignore", "-c", TRY])
    scorer = open_scorer(own, "auto", find_weights(None))
    print(f"{', '.join(f'{name} {number}' for name, number in scorer.versions.items())}; on {scorer.device}")
    if not scorer.packages["detectron2"]:
        print(f"object_class, multiple_objects, color and spatial_relationship also need: {own} {DETECTRON2}")
    print(f"ready: --scorer_python {own}")


def check_python(python: str) -> None:
    """Raises ValueError unless it is a Python 3.11: tokenizers 0.13.3 has no wheel for newer ones."""
    wanted = "expected a Python 3.11, since vbench's pins have no wheels for others (--python PYTHON3.11)"
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        version = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise ValueError(f"{python} can't be run ({reason.strip().splitlines()[0]}): {wanted}") from None
    if version != "3.11":
        raise ValueError(f"{python} is Python {version}: {wanted}")


def _run(command: list[str]) -> None:
    """Raises ValueError when it fails; what it prints is seen."""
    print("+ " + " ".join(command), flush=True)
    if code := subprocess.run(command).returncode:
        what = f"{' '.join(command[1:4])} ended with code {code}"
        raise ValueError(f"{what}, see above; the same command goes on from there")
