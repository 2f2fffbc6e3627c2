"""The pages in a browser: nothing sticks out of them, at a phone's width and a desk's."""

import pytest

from eval.vbench.__main__ import command
from eval.vbench.suite import Plan, Planned, write_plan
from tests.eval.test_vbench_report import NASTY
from tests.helpers.vbench_runs import build_run, find_browser, measure
from tests.helpers.vbench_suite import write_score
from train.common.videos import write_video

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="needs chromium or google-chrome on PATH"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By name, of runs whose names and prompts are hard to set."""
    import torch

    base = tmp_path_factory.mktemp("pages")
    build_run(base / "full", shown="a teal kettle")
    build_run(base / "quick", quick=2)
    build_run(base / "partial", absent=("scene", "color"), unfiltered=True, shown="nothing")
    videos = tuple(Planned(f"{'v' * 150}{i}-0.mp4", prompt, i, 0, ("scene",)) for i, prompt in enumerate(NASTY))
    write_plan(base / "nasty/plan.json", Plan("0", ("scene",), None, videos))
    write_score(base / "nasty", "scene", 0.5, complete=False, note="x" * 300, videos={x.name: 0.5 for x in videos})
    (base / "nasty/videos").mkdir()
    write_video(base / "nasty/videos" / videos[0].name, torch.zeros(3, 4, 16, 256), 8)
    for name in ("full", "quick", "partial", "nasty"):
        command(["report", f"--out={base / name}", f"--name={'m' * 120 if name == 'nasty' else name}"])
    command(["compare", f"{'a' * 70}={base / 'full'}", f"b={base / 'partial'}", f"--out={base / 'compared'}"])
    return {**{name: base / name / "report.html" for name in ("full", "quick", "partial", "nasty")},
            "compared": base / "compared/compare.html"}  # fmt: skip


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["full", "quick", "partial", "nasty", "compared"])
def test_nothing_sticks_out(pages, name, width):
    found = measure(find_browser(), pages[name], width)
    assert found["width"] == width and found["wide"] == [] and found["height"] > 1000


@pytest.mark.parametrize("name", ["full", "quick", "partial", "nasty", "compared"])
def test_nothing_is_cut_off_in_print(pages, name, tmp_path):
    """The style of print, at the width of A4 within its margins: there tables don't scroll."""
    page = tmp_path / "print.html"
    page.write_text(pages[name].read_text().replace("@media print", "@media all"))
    found = measure(find_browser(), page, 700)
    assert found["width"] == 700 and found["wide"] == []


def test_what_sticks_out_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><body><p style="width: 700px">wide</p></body>')
    found = measure(find_browser(), page, 390)
    assert found["width"] > 390 and found["wide"] == ["P"]
