"""A small prepared set, shared by the tests of what is done with it."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.preparing import SMALL, caption, prepare, small_scene, write_config


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The configuration."""
    return write_config(tmp_path_factory.mktemp("config") / "small.yaml", SMALL)


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Eight videos, of which three hold two clips; not to be changed."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(8):
        small_scene(folder / f"{i}.mp4", 120 + i, frames=48 if i < 3 else 24)
    return caption(folder)


@pytest.fixture(scope="session")
def prepared(raw, small, tmp_path_factory):
    """What train.prepare makes of them; not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(raw, out, small)
    return out


@pytest.fixture
def out(prepared, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(prepared, tmp_path / "out", copy_function=shutil.copy2))


@pytest.fixture
def few(monkeypatch):
    """Shards of few clips, so that there are several."""
    monkeypatch.setattr("train.prepare.pack.SHARD_CLIPS", 3)


@pytest.fixture
def encoded(monkeypatch):
    """The names of the clips that are encoded from now on."""
    from train.prepare import encode

    names, read = [], encode.read_pixels
    monkeypatch.setattr(
        encode, "read_pixels", lambda folder, clip, fps: names.append(clip.name) or read(folder, clip, fps)
    )
    return names
