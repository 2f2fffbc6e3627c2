"""VBench's reports as they are read: HTML, Markdown, CSV and LaTeX of a run and of a comparison."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from statistics import fmean
from urllib.parse import unquote

import pytest
from PIL import Image

import eval.vbench.report as report_module
from eval.intervals import Estimate
from eval.vbench.__main__ import command
from eval.vbench.chart import describe_chart, draw_scores, find_mark
from eval.vbench.compare import open_runs
from eval.vbench.document import STYLE, find_link
from eval.vbench.log import find_id, list_figures
from eval.vbench.page import find_losses, to_html
from eval.vbench.report import collect, hide_paths, tabulate_scores, to_dict, to_markdown
from eval.vbench.suite import DIMENSIONS, Plan, Planned, write_plan
from eval.vbench.tables import Column, Table, escape_tex, percent, percents
from tests.helpers.vbench_runs import build_run
from tests.helpers.vbench_suite import save, write_results, write_score

NASTY = [
    "<script>alert(\"1\")</script> & 'quotes'",
    "قطة تمشي على الشاطئ",
    "w" * 200,
    "100% of a | b, \\emph{x}_1 #2 $3 ~ ^",
]
EMPTY = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """What is in a page, and that all that is opened is closed."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text, self.within = [], [], "", {}
        self.feed(Path(file).read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.within.setdefault(tag, []).append([*self.open])
        if tag not in EMPTY:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open or self.open[-1][0] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(file):
    """What every page of ours has to be."""
    page = Page(file)
    text = Path(file).read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert page.all("img") and all(len(image["alt"]) > 20 for image in page.all("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th")) and page.all("th")
    assert all(("div", "scroll") in [(t, a.get("class")) for t, a in where] for where in page.within["table"])
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    for rule in ("@media print", "prefers-color-scheme: dark", "overflow-wrap: anywhere", "break-inside: avoid"):
        assert rule in style
    assert re.search(r"\.scroll \{[^}]*max-width: 100%; overflow-x: auto", style)
    assert re.search(r"img, video \{[^}]*max-width: 100%", style)
    outside = [x for name in ("img", "video", "link", "script", "iframe") for x in page.all(name)
               if not x.get("src", "data:").startswith("data:") and not x["src"].endswith(".mp4")]  # fmt: skip
    assert not outside and not page.all("script")
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run of all of VBench; not to be changed."""
    out = build_run(tmp_path_factory.mktemp("runs") / "full")
    command(["report", f"--out={out}", "--name=made up"])
    return out


@pytest.fixture(scope="module")
def worse(full, tmp_path_factory):
    out = build_run(full.parent / "worse", loss=0.1)
    some = next((full / "videos").iterdir())
    for loss in find_losses(*open_runs([str(full), str(out)])):
        for run in (full, out):
            shutil.copy(some, run / "videos" / loss.video)
    return out


def write_run(out, prompts):
    """A run of one dimension, with a video of each prompt."""
    videos = tuple(Planned(f"video {i}-0.mp4", prompt, i, 0, ("scene",)) for i, prompt in enumerate(prompts))
    write_plan(out / "plan.json", Plan("0", ("scene",), None, videos))
    for video in videos:
        save(out / "videos" / video.name, frames=8)
    write_score(out, "scene", 0.5, videos={video.name: 0.5 for video in videos})
    return videos


def luminance(colour):
    """Of #rgb or #rrggbb, as WCAG has it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * x for x in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_stands_out_by_day_and_by_night_and_in_print():
    day = dict(re.findall(r"--(\w+): (#\w+)", STYLE.split("@media")[0]))
    night, printed = (day | dict(re.findall(r"--(\w+): (#\w+)", part)) for part in STYLE.split("@media")[1:])
    for colours in (day, night, printed):
        for text, ground in (("text", "page"), ("dim", "page"), ("link", "page"), ("text", "box"), ("text", "warn")):
            low, high = sorted(luminance(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_page_of_a_full_run(full):
    page = check_page(full / "report.html")
    chart = page.all("img")[0]["alt"]
    report = collect(full, "made up")
    assert chart == describe_chart(report) and "human action" in chart and "made up" in chart
    for said in ("94.5", "0.238", "21.4", "an imaginary GPU", "0123abc", "5f1c0b7e93d24a68", "torch 2.11.0"):
        assert said in page.text and said in (full / "report.md").read_text()
    made = json.loads((full / "report.json").read_text())["making"]
    assert made["fingerprints"]["transformer"] == {"5f1c0b7e93d24a68": 200} and made["commits"] == {"0123abc": 200}
    assert (made["seconds"], made["peak_gb"], made["devices"]) == (94.495, 21.4, {"an imaginary GPU": 200})
    assert len(page.all("figure")) == 11 == len(page.all("video"))
    for player in page.all("video"):
        assert player["preload"] == "none" and player["poster"].startswith("data:image/jpeg;base64,")
        assert (full / unquote(player["src"])).is_file()
    assert all((full / unquote(link["href"])).is_file() for link in page.all("a"))
    strip = page.all("img")[1]
    assert strip["alt"].startswith("5 frames of the video of: a teal kettle")
    assert Image.open(BytesIO(base64.b64decode(strip["src"].split(",")[1]))).size == (800, 96)
    assert str(full.parent) not in (full / "report.html").read_text()


def list_marks(out):
    report = collect(out)
    return {name: find_mark(report, name) for name in DIMENSIONS}


def test_bars_that_arent_full_scores_are_marked(full, tmp_path):
    assert {*list_marks(full).values()} == {""}
    quick = build_run(tmp_path / "quick", quick=2, shown="nothing")
    partial = build_run(tmp_path / "partial", absent=("scene",), unfiltered=True, shown="nothing")
    said = json.loads((partial / "scores/color.json").read_text())
    (partial / "scores/color.json").write_text(json.dumps({**said, "complete": False, "missing": ["x"]}))
    marks = {name: mark for name, mark in list_marks(partial).items() if mark != ""}
    assert marks == {"scene": None, "color": "partial", "temporal_flickering": "unfiltered"}
    assert {*list_marks(quick).values()} == {"quick"}
    alt = describe_chart(collect(partial))
    assert "scene no score" in alt and "(partial)" in alt and "(unfiltered)" in alt
    for out in (quick, partial):
        command(["report", f"--out={out}"])
        assert "Withheld: Total" in check_page(out / "report.html").text
        assert (out / "chart.png").read_bytes()[:4] == b"\x89PNG"


def test_intervals_are_shown_with_their_prompts(full, tmp_path, monkeypatch):
    found = {
        "scene": Estimate(0.4, 0.35, 0.45, 0.01, 86, 430),
        "color": Estimate(0.4, None, None, None, 1, 5),
        "total": Estimate(0.8, 0.79, 0.81, 0.0, 944, 4720),
    }
    monkeypatch.setattr(report_module, "find_intervals", lambda results: found)
    shutil.copytree(full, tmp_path / "run")
    command(["report", f"--out={tmp_path / 'run'}"])
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "35.00 to 45.00" in text and "Total 79.00 to 81.00 (944 prompts)" in text
    said = json.loads((tmp_path / "run/report.json").read_text())
    assert said["intervals"] == {"total": {"low": 0.79, "high": 0.81, "prompts": 944, "values": 4720}}
    assert said["dimensions"]["scene"]["interval"]["prompts"] == 86 and said["dimensions"]["scene"]["interval"]
    rows = {row["dimension"]: row for row in csv.DictReader((tmp_path / "run/scores.csv").open())}
    assert (rows["scene"]["low"], rows["scene"]["high"], rows["scene"]["prompts"]) == ("0.35", "0.45", "86")
    assert (rows["color"]["low"], rows["color"]["prompts"]) == ("", "1") and rows["Total"]["low"] == "0.79"
    figures = list_figures(collect(tmp_path / "run"))
    assert figures["scene_low"] == 0.35 and "color_low" not in figures and figures["seconds_per_video"] == 94.495


def test_figures_for_papers_are_unrounded_in_csv_and_escaped_in_latex(full):
    table = tabulate_scores(collect(full))
    rows = [*csv.DictReader((full / "scores.csv").open())]
    assert len(rows) == len(table.rows) == 19
    assert float(rows[0]["score"]) == collect(full).results.scores["subject_consistency"].score
    assert (rows[0]["videos"], rows[0]["expected_videos"]) == ("360", "360")
    tex = (full / "scores.tex").read_text()
    assert r"subject\_consistency & quality & " in tex and tex.count(r"\\") == 20 and r"95 \% interval" in tex
    assert tex.count("{tabular}") == 2 and all(
        tex.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule")
    )
    markdown = (full / "report.md").read_text()
    assert f"{100 * float(rows[0]['score']):.2f}" in tex and f"{100 * float(rows[0]['score']):.2f}" in markdown


def test_a_table_once():
    columns = (Column("a | name", ("name",)), Column("score", ("score",), percent, True),
               Column("interval", ("low", "high"), percents, True), Column("note", ("note",)))  # fmt: skip
    table = Table(columns, [["[x] a|b\n<c>", -0.12345, (0.1, 0.2), 'say "x", & 50 %'], ["y_1", None, (None, None), ""]])
    assert table.to_markdown() == [
        "| a \\| name | score | interval | note |",
        "|---|---:|---:|---|",
        '| [x] a\\|b <c> | -12.35 | 10.00 to 20.00 | say "x", & 50 % |',
        "| y_1 | - | - |  |",
    ]
    assert [*csv.reader(table.to_csv().splitlines(keepends=True))] == [
        ["name", "score", "low", "high", "note"],
        ["[x] a|b\n<c>", "-0.12345", "0.1", "0.2", 'say "x", & 50 %'],
        ["y_1", "", "", "", ""],
    ]
    tex = table.to_tex("50 % of_x")
    assert r"\caption{50 \% of\_x}" in tex and r"{[}x] a\textbar{}b \textless{}c\textgreater{} & $-$12.35 & " in tex
    assert r"say ''x''" in tex.replace('"', "''") and r"\& 50 \%" in tex and r"y\_1 & - & - & " in tex
    page = table.to_html("all & more")
    assert '<th scope="row"><bdi>[x] a|b &lt;c&gt;</bdi></th><td class="figure">-12.35</td>' in page
    assert '<th scope="col" class="figure" title="score"><bdi>score</bdi></th>' in page and "all &amp; more" in page
    assert escape_tex("\\~^{}") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}"


def test_prompts_and_names_are_text_and_never_more(tmp_path):
    for i, prompt in enumerate(NASTY):
        out = tmp_path / str(i)
        write_run(out, [prompt])
        command(["report", f"--out={out}", f"--name={prompt}"])
        page = check_page(out / "report.html")
        assert page.all("img")[-1]["alt"].endswith(prompt) and page.text.count(prompt) >= 3
        assert '<bdi dir="auto">' in (out / "report.html").read_text()
        assert (out / "scores.tex").read_text().count(escape_tex(prompt)) == 1


@pytest.mark.parametrize(
    "record", ["null", "[]", "3", '{"name": "', '{"seconds": 3}', '{"prompt": "a", "machine": []}']
)
def test_a_record_that_is_none_is_left_out_and_said(tmp_path, record):
    videos = write_run(tmp_path, ["a", "b", "c"])
    (tmp_path / "records").mkdir()
    for video, text in zip(
        videos, (record, *(json.dumps({"prompt": "a", "seconds": x}) for x in (4.0, 6.0))), strict=True
    ):
        (tmp_path / f"records/{video.name[:-4]}.json").write_text(text)
    command(["report", f"--out={tmp_path}"])
    said = "1 record of a video is broken and left out of how they were made: video 0-0.json"
    made = json.loads((tmp_path / "report.json").read_text())["making"]
    assert made["seconds"] == 5.0 and (said in made["problems"]) == ("prompt" not in record)
    for name in ("report.md", "report.html"):
        assert (said in (tmp_path / name).read_text()) == ("prompt" not in record)


def test_numbers_in_records_that_are_none_dont_count(tmp_path):
    videos = write_run(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "records").mkdir()
    for video, seconds, weights in zip(videos, ("NaN", "true", '"3"', "7"), "xxyx", strict=True):
        text = f'{{"prompt": "a", "seconds": {seconds}, "fingerprints": {{"transformer": "{weights}"}}}}'
        (tmp_path / f"records/{video.name[:-4]}.json").write_text(text)
    command(["report", f"--out={tmp_path}"])
    made = json.loads((tmp_path / "report.json").read_text())["making"]
    assert made["seconds"] == 7 and made["fingerprints"] == {"transformer": {"x": 3, "y": 1}}
    assert made["problems"] == ["videos are of different weights of the transformer: x (3 videos), y (1 video)"]


@pytest.mark.parametrize(
    "value", [None, [], {}, 3, -1.5, "x", True, 1e308, [[1]], {"a": [1, {"b": None}], "device": 3}]
)
def test_a_record_of_other_values_stops_no_report(tmp_path, value):
    (video,) = write_run(tmp_path, ["a"])
    file = tmp_path / f"records/{video.name[:-4]}.json"
    file.parent.mkdir()
    draw_scores(tmp_path / "chart.png", collect(tmp_path))
    for name in (
        "seconds",
        "peak_gb",
        "density",
        "machine",
        "fingerprints",
        "versions",
        "clip",
        "checkpoint",
        "regimes",
    ):
        for said in (value, {"transformer": value, "device": value, "commit": value, "versions": value}):
            file.write_text(json.dumps({"prompt": "a", name: said}))
            report = collect(tmp_path)
            assert "scene" in to_markdown(report) and "scene" in to_html(report, tmp_path)
            json.dumps(to_dict(report), allow_nan=False)


def test_videos_that_cant_be_shown_are_left_out_and_said(tmp_path):
    videos = write_run(tmp_path, ["a", "b", "c"])
    (tmp_path / "videos" / videos[0].name).write_bytes(b"no video")
    (tmp_path / "videos" / videos[1].name).unlink()
    (tmp_path / "videos" / videos[1].name).mkdir()
    command(["report", f"--out={tmp_path}"])
    page = check_page(tmp_path / "report.html")
    assert len(page.all("figure")) == 1 and "2 videos can't be shown and are left out: video 0-0.mp4 (" in page.text
    shutil.rmtree(tmp_path / "videos")
    command(["report", f"--out={tmp_path}"])
    assert not check_page(tmp_path / "report.html").all("figure")


def test_links_are_relative_and_tell_nothing_of_the_machine(tmp_path):
    page = tmp_path / "runs/mine"
    assert find_link(page / "videos/a b%2F#-0.mp4", page) == "videos/a%20b%252F%23-0.mp4"
    assert find_link(tmp_path / "runs/theirs/x.mp4", page) == "../theirs/x.mp4"
    assert find_link(Path("/srv/videos/x.mp4"), page) is None
    videos = write_run(tmp_path / "far/away", ["a"])
    for name in ("near", "deep/down/far"):
        out = tmp_path / name
        write_plan(out / "plan.json", Plan("0", ("scene",), None, videos, str(tmp_path / "far/away/videos")))
        write_score(out, "scene", 0.5, note="missing /home/me/weights/x.pth")
        command(["report", f"--out={out}"])
        text = (out / "report.html").read_text()
        assert str(tmp_path) not in text and "/home/me" not in text and ".../x.pth" in text and "video 0-0.mp4" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("missing /home/me/a/x.pth", "missing .../x.pth"),
        ("wrong size: /a/b/x.pth has 3 bytes", "wrong size: .../x.pth has 3 bytes"),
        ("see https://host/a/b and/or c", "see https://host/a/b and/or c"),
        ("scores/scene.json can't be read", "scores/scene.json can't be read"),
    ],
)
def test_folders_of_paths_are_hidden(text, shown):
    assert hide_paths(text) == shown


def test_the_page_of_a_comparison(full, worse, tmp_path, capsys):
    out = full.parent / "compared"
    command(["compare", f"a_1 & <b>={full}", f"other={worse}", f"--out={out}"])
    page = check_page(out / "compare.html")
    assert "other against a_1 & <b>" in page.text and "a_1 &amp; &lt;b&gt;" in (out / "compare.html").read_text()
    losses = find_losses(*open_runs([str(full), str(worse)]))
    assert {loss.dimension for loss in losses} >= {"scene", "color", "human_action"} and len(losses) == 16
    assert [loss.change for loss in losses] == sorted(loss.change for loss in losses)
    assert len(page.all("figure")) == len(page.all("video")) == 32 and f"{losses[0].prompt}" in page.text
    assert "not told apart" in page.text or "worse" in page.text
    rows = [*csv.DictReader((out / "compare.csv").open())]
    assert len(rows) == 19 and {row["run"] for row in rows} == {"other"} and rows[-1]["row"] == "total"
    first, other = (json.loads((run / "scores/scene.json").read_text())["score"] for run in (full, worse))
    scene = next(row for row in rows if row["row"] == "scene")
    assert (float(scene["first"]), float(scene["other"])) == (first, other)
    assert float(scene["difference"]) == pytest.approx(other - first) and float(scene["low"]) < other - first
    tex = (out / "compare.tex").read_text()
    assert tex.count(r"\begin{table}") == 2 and r"a\_1 \& \textless{}b\textgreater{}" in tex
    assert f"$-${100 * (first - other):.2f}" in tex


def test_the_greatest_loss_of_a_dimension(tmp_path):
    values = {"a b-0.mp4": 0.5, "a b-1.mp4": 0.9, "c-0.mp4": 0.6}
    for name, change in (("first", (0, 0, 0)), ("other", (-0.1, -0.3, -0.15))):
        changed = {video: value + x for (video, value), x in zip(values.items(), change, strict=True)}
        changed[f"only {name}-0.mp4"] = 0.0 if name == "other" else 1.0
        write_score(tmp_path / name, "color", fmean(changed.values()), videos=changed)
        scene = 0.2 if name == "first" else 0.3
        write_score(tmp_path / name, "scene", scene, videos={"c-0.mp4": scene})
    runs = open_runs([str(tmp_path / "first"), str(tmp_path / "other")])
    (loss,) = find_losses(*runs)
    assert (loss.dimension, loss.prompt, loss.video) == ("color", "a b", "a b-1.mp4")
    assert loss.change == pytest.approx(-0.2) and loss.scores["color"] == pytest.approx((0.7, 0.5))
    assert find_losses(runs[0], replace(runs[0], name="same")) == []


def test_scores_alone_are_compared_without_videos(full, tmp_path):
    from tests.helpers.vbench_suite import full_results

    runs = [write_results(tmp_path / str(i), full_results(1 - i / 50, i)) for i in (0, 1)]
    command(["compare", *runs, f"--out={tmp_path / 'out'}"])
    page = check_page(tmp_path / "out/compare.html")
    assert not page.all("figure") and "Prompts that lost most" in page.text


@pytest.mark.parametrize("held", [None, "null", "[]", "{", '{"p": 3}'])
def test_the_run_of_wandb_goes_with_its_folder(tmp_path, held):
    here = tmp_path / "here"
    here.mkdir()
    if held:
        (here / "wandb.json").write_text(held)
    number = find_id(here, "p")
    assert re.fullmatch("[0-9a-f]{16}", number) and find_id(here, "p") == number != find_id(here, "q")
    here.rename(tmp_path / "there")
    assert find_id(tmp_path / "there", "p") == number
