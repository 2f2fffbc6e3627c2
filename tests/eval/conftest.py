"""What the tests of records are about: a release, a video of it, a checkpoint."""

import shutil
from pathlib import Path

import pytest

from eval.generate.command import command
from tests.helpers.records import making
from tests.helpers.tiny_run import tiny_checkpoint


@pytest.fixture
def wan(wan_folder, tmp_path):
    """A release to be changed."""
    return shutil.copytree(wan_folder, tmp_path / "wan")


@pytest.fixture
def made(wan, tmp_path):
    """One video of it."""
    command(making(wan, tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A checkpoint of two steps; not to be changed."""
    return tiny_checkpoint(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def trained(kept, tmp_path):
    return Path(shutil.copy(kept, tmp_path / "last.ckpt"))
