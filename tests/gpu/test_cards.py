"""On a GPU: the kernels that docs.make.cards compiles for other cards."""

import pytest

from docs.make.kernels import read_sources
from tests.helpers.commands import run_apart

pytestmark = pytest.mark.gpu


def test_kernels_are_written_where_they_are_read(tmp_path):
    done = run_apart("-m", "docs.make.cards", tmp_path / "kernels", "--generate=true", timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(read_sources(tmp_path / "kernels")) == 5
