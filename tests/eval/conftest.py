"""What tests of records and of the study are about: a release, a video of it, a checkpoint; the miniature."""

import shutil
from pathlib import Path

import pytest

from eval.generate.command import command
from eval.study.command import command as study
from tests.helpers.commands import ROOT
from tests.helpers.miniature import words
from tests.helpers.once import once
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


@pytest.fixture(scope="module")
def at_root():
    """Where the paths of a study's configurations begin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def studied(at_root, tmp_path_factory):
    """The folder of the miniature, all of it, two tasks at once; not to be changed."""
    return once(tmp_path_factory, "miniature", lambda out: study(words(out, "--devices=0,1")))
