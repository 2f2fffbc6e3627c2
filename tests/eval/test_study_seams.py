"""Whether tiles show in a video: against stairs, flat tiles, noise."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from einops import repeat

from eval.generate.jobs import Clip
from eval.study.config import LinearFit, Row
from eval.study.seams import measure_seams, seams
from fps_flex import FPSAttention
from tests.helpers.commands import ROOT
from train.common.videos import write_video


def test_seams_are_told_where_tiles_meet_alone():
    """Steps of 0.1 between tokens and 0.3 between tiles in time, 0.2 and 0.4 in rows; one tile has no edges."""

    def stairs(*steps):
        return torch.tensor([0.0, *steps]).cumsum(0).repeat_interleave(2)

    video = (stairs(0.1, 0.3, 0.1)[:, None] + stairs(0.2, 0.4, 0.2))[None, :, :, None].expand(3, 8, 8, 12)
    assert seams(video, (4, 4, 6), (2, 2, 6)) == ([pytest.approx(3, rel=0.02)], [pytest.approx(2, rel=0.02)], [])
    assert seams(video, (4, 4, 6), (1, 4, 2)) == ([], [], [pytest.approx(1)] * 2)
    assert seams(torch.zeros(3, 8, 8, 12), (4, 4, 6), (2, 2, 2)) == ([1], [1], [1, 1])  # a still
    noise = torch.rand(3, 16, 64, 128, generator=torch.Generator().manual_seed(0))
    assert sum(seams(noise, (16, 16, 32), (4, 4, 8)), []) == pytest.approx([1] * 9, abs=0.05)


@pytest.fixture
def shown_plan(tmp_path):
    """Of study.yaml's own grid: 16x16x32 tokens of 2x8x8 pixels, in tiles of 4x4x8; of the row `flat` of one tile."""
    study = yaml.safe_load((ROOT / "configs/study/study.yaml").read_text())
    base = yaml.safe_load((ROOT / study["pretraining"][-1]).read_text())
    searched = FPSAttention(tile=tuple(study["search"]["attention"]["tile"]))
    fitted = SimpleNamespace(
        codec=LinearFit(**study["codec"]), clip=Clip(**study["clip"]), pretraining=study["pretraining"],
        search=SimpleNamespace(attention=searched), measures=SimpleNamespace(shown=2, videos=96),
    )  # fmt: skip
    rows = {"dense": Row(), "joint": Row(attention=searched), "flat": Row(attention=FPSAttention(tile=(16, 16, 32)))}
    return SimpleNamespace(
        row=lambda row, _: tmp_path / row, describe=lambda: {"pretraining": [base]}, study=fitted, rows=rows
    )


def show(plan, row, number, video):
    (plan.row(row, 0) / "shown").mkdir(parents=True, exist_ok=True)
    write_video(plan.row(row, 0) / f"shown/{number}.mp4", video, 16)


def test_seams_are_of_the_videos_that_are_shown(shown_plan):
    """Flat tiles are nothing but seams, at the edges of a row's own tiles, else of those that are searched for."""
    assert measure_seams(shown_plan, "joint", 0) is None
    flat = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for row in ("dense", "joint", "flat"):
        show(shown_plan, row, 0, repeat(flat, "c f h w -> c (f 8) (h 32) (w 64)"))
        assert measure_seams(shown_plan, row, 0) is None  # of two
        show(shown_plan, row, 1, torch.zeros(3, 32, 128, 256))
    assert min(sum(measure_seams(shown_plan, "joint", 0), [])) > 20
    assert measure_seams(shown_plan, "dense", 0) == measure_seams(shown_plan, "joint", 0)
    assert measure_seams(shown_plan, "flat", 0) == ([], [], [])
    show(shown_plan, "joint", 7, torch.zeros(3, 4, 8, 8))  # which isn't one of them
    assert measure_seams(shown_plan, "dense", 0) == measure_seams(shown_plan, "joint", 0)


def test_a_shown_video_that_is_broken_or_of_another_size_is_named(shown_plan):
    show(shown_plan, "joint", 1, torch.zeros(3, 32, 64, 256))
    with pytest.raises(ValueError, match=r"shown/1.mp4 is of \(32, 64, 256\), not \(32, 128, 256\).*: delete it"):
        measure_seams(shown_plan, "joint", 0)
    (shown_plan.row("joint", 0) / "shown/1.mp4").write_bytes(b"none")
    with pytest.raises(ValueError, match="1.mp4.*: delete .*1.mp4, and the report does without it"):
        measure_seams(shown_plan, "joint", 0)
