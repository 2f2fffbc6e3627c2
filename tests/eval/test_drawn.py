"""What draws pictures of the method, and the bench that reads data: files are there, and show what they say."""

import json

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from docs.make import rules
from eval import tiles
from eval.bench.data import data
from fps_flex import TileLayout, density


@pytest.fixture
def axes():
    return Figure().add_subplot()


@pytest.mark.parametrize(("draw", "panels"), [(tiles.tiles, 3), (rules.main, 6)], ids=["tiles", "rules"])
def test_a_picture_is_written_and_the_same_each_time(tmp_path, monkeypatch, draw, panels):
    made = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: made.append(self) or savefig(self, *a, **k))
    for name in ("one.png", "two.png"):
        draw(tmp_path / "new" / name)
    one, two = (imread(tmp_path / "new" / name) for name in ("one.png", "two.png"))
    assert one.shape == two.shape and (one == two).all() and one.std() > 0.05
    assert len(made[0].axes) == panels and all(panel.get_title() for panel in made[0].axes)


def test_tiles_number_the_slots_and_colour_what_is_computed(axes):
    layout, window = TileLayout((2, 5, 6), (1, 2, 3), 8), (1, 2, 1)
    tiles.draw_order(axes, layout)
    assert [int(text.get_text()) for text in axes.texts] == layout.slot_of_token[:30].tolist()
    assert len(axes.patches) == 6 and "36 of 96 slots are pads" in axes.get_title()

    blocks = Figure().add_subplot()
    tiles.draw_blocks(blocks, layout, window)
    kinds = torch.as_tensor(blocks.images[0].get_array())
    assert kinds.shape == (12, 12) and (kinds > 0).sum() == 12 * 2 and (kinds == 2).sum() == 0  # all tiles have pads
    assert f"density {density(layout, window).item():.2f}" in blocks.get_title()


def test_a_window_shows_each_query_tile_and_the_keys_that_it_sees(axes):
    layout = TileLayout((1, 4, 8), (1, 2, 2), 4)
    tiles.draw_window(axes, layout, (1, 1, 3), ((0, 0, 0), (0, 1, 3)))
    picture = torch.as_tensor(axes.images[0].get_array())
    seen = (picture != 1).any(-1)
    assert seen[:2, :6].all() and seen[2:, 2:].all() and seen.sum() == 12 + 12
    assert len(picture.flatten(0, 1).unique(dim=0)) == 5  # white, and for each query its tile and the others


def test_rules_mark_ties_groups_windows_and_the_steps_of_each_regime(axes):
    rules.draw_rounding(axes)
    ties = dict(zip(*(x.tolist() for x in axes.lines[1].get_data()), strict=True))
    assert ties[336] == 320 and ties[304] == 320 and ties[432] == 448

    groups, windows, regimes = Figure().subplots(1, 3)
    rules.draw_groups(groups, TileLayout((2, 10, 14), (2, 2, 2), 8), 2)
    assert [int(text.get_text()) for text in groups.texts[:7]] == [0, 0, 1, 1, 2, 2, 3]
    rules.draw_windows(windows, 7, 4)
    assert (torch.as_tensor(windows.images[0].get_array()) > 0).sum(1).tolist() == [4] * 7
    assert {text.get_text() for text in windows.texts} == {"x", "0..3", "1..4", "2..5", "3..6"}
    rules.draw_regimes(regimes)
    labels = [bar.get_label() for bar in regimes.containers]
    assert [label.split(",")[0] for label in labels] == [
        "early: steps 0 to 14", "middle: steps 15 to 34", "late: steps 35 to 49"
    ]  # fmt: skip


def test_data_measures_how_fast_a_set_is_read(tmp_path, capsys):
    data("tiny", clips=2, seconds=0.2, out=tmp_path / "out/data.json")
    (row,) = json.loads((tmp_path / "out/data.json").read_text())["rows"]
    assert row["model"] == "tiny" and row["clips_read"] > 2  # again and again
    assert row["step_seconds"] > 0
    assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(320)
    assert f"| {row['clips_read']} |" in capsys.readouterr().out
