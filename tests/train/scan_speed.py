"""How long a run takes to start on a folder of many clips, the first time and the second; run by hand.

python tests/train/scan_speed.py --clips 100000 --work /dev/shm/scan_speed

Writes so many small mp4s (1.7 KB each) with a metadata.csv below --work, and starts twice as train.fit does: reads the
captions, looks at the clips, holds some out. Says seconds and peak memory of each start, and removes the clips.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

START = """
import resource, time
begun = time.perf_counter()
from train.data import VideoData
loaded = time.perf_counter()
data = VideoData({folder!r}, frames=5, fps=8, height=16, width=16)
data.setup()
ready = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{{ready - loaded:7.1f}} s, {{peak:.0f}} MiB at most, {{loaded - begun:.1f}} s to load Python's modules; "
      f"{{len(data.train_set)}} clips to train on, {{len(data.val_set)}} held out")
"""


def write_clip(path: Path) -> Path:
    """Six grey frames of 16x16."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        for i in range(6):
            picture = np.full((16, 16, 3), 20 + 4 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--work", type=Path, required=True, help="a folder that is made, and removed at the end")
    args = parser.parse_args()
    folder = args.work / "clips"
    folder.mkdir(parents=True)
    try:
        content = write_clip(args.work / "one.mp4").read_bytes()
        for i in range(args.clips):
            (folder / f"{i:06}.mp4").write_bytes(content)
        rows = (f'{i:06}.mp4,"clip {i}, of a flat grey"\n' for i in range(args.clips))
        (folder / "metadata.csv").write_text("video,prompt\n" + "".join(rows))
        environment = os.environ | {"XDG_CACHE_HOME": str(args.work.absolute() / "cache")}
        for name in ("first start", "second start"):
            print(name, end=" ", flush=True)
            code = START.format(folder=str(folder))
            subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=Path(__file__).parents[2])
    finally:
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
