"""Reports and pictures take the place of earlier ones, and of nothing else."""

import pytest

from eval.bench.command import command
from eval.tiles import command as draw
from eval.timing import check_out, write_report
from tests.helpers.commands import refused, refused_unmeasured
from train.common.atomic import beside, write_text

BENCHES = ("kernel", "profile", "length", "model", "pipeline", "video", "train", "data")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    (tmp_path / "mine.json").write_text("precious")
    return tmp_path


@pytest.mark.parametrize("name", BENCHES)
@pytest.mark.parametrize(
    ("out", "told"),
    [("mine", "mine can't be replaced"), ("mine.json", "mine.json was not written by this command"),
     ("mine/thesis.txt", "thesis.txt was not written by this command")],
)  # fmt: skip
def test_a_bench_leaves_what_is_anothers(folder, capsys, name, out, told):
    refused_unmeasured(capsys, command, [name, "--size=tiny", f"--out={folder / out}"], told)
    assert (folder / "mine/thesis.txt").read_text() == (folder / "mine.json").read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "mine.json"]


@pytest.mark.parametrize(
    ("out", "told"),
    [(".", "the name of a JSON file"), ("x.md", "the name of a JSON file"), ("mine.json", "mine.md was")],
)
def test_a_kernels_table_and_plot_leave_what_is_anothers(folder, capsys, monkeypatch, out, told):
    monkeypatch.chdir(folder)
    (folder / "mine.json").unlink()
    (folder / "mine.md").write_text("precious")
    refused_unmeasured(capsys, command, ["kernel", "--size=tiny", f"--out={out}"], told)
    assert (folder / "mine.md").read_text() == "precious"


def test_a_report_takes_the_place_of_an_earlier_one(tmp_path):
    out = tmp_path / "report.json"
    for rows in ([], [{"seconds": 1.0}]):
        check_out(out)
        write_report(out, rows)
    assert '"seconds": 1.0' in out.read_text()


def test_a_picture_takes_the_place_of_one_of_ours_alone(folder, capsys):
    for _ in range(2):
        draw([f"--out={folder / 'tiles.png'}"])
    for other in ("mine", "mine.json"):
        assert f"{other} " in refused(capsys, draw, [f"--out={folder / other}"])
    assert (folder / "mine/thesis.txt").read_text() == (folder / "mine.json").read_text() == "precious"
    assert "tile (9, 1, 1) is larger" in refused(capsys, draw, ["--tile=[9,1,1]", f"--out={folder / 'other.png'}"])
    assert not (folder / "other.png").exists()


def test_a_file_takes_a_folders_place_only_where_it_may(folder):
    with pytest.raises(IsADirectoryError, match="mine"):
        write_text(folder / "mine", "x")
    assert (folder / "mine/thesis.txt").read_text() == "precious"
    with beside(folder / "mine", over_folder=True) as temporary:  # as a checkpoint that several processes wrote
        temporary.write_text("x")
    assert (folder / "mine").read_text() == "x" and len(list(folder.iterdir())) == 2
