"""Whole source videos are held out, and what a clip's name says of its source."""

import json
import logging

import pytest

from tests.helpers.grey_clips import make_clip
from train.data import VideoData
from train.folder import Clip
from train.order import Passes
from train.origins import find_origin
from train.split import find_sources, hold_out


def clips_of(*names, source=""):
    return [Clip(name, "x", 0.0, source) for name in names]


def sources_of(clips):
    videos, named = [clip.video for clip in clips], [clip.source for clip in clips]
    return find_sources(videos, named, [clip.place or clip.video for clip in clips])


def names(clips):
    return [clip.video for clip in clips]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("beach-Scene-001.mp4", "beach-Scene-014.mp4"),
        ("long/beach-Scene-001.mp4", "short/beach-Scene-014.mp4"),
        ("x/video-Scene-001.mp4", "x/video-Scene-002.mp4"),
        ("film_clip3.mp4", "Film_clip12.mov"),
        ("film_part_02.mp4", "film_part_03.mp4"),
        ("film part 2 of 9.mp4", "film part 3 of 9.mp4"),
        ("film.0001.mp4", "film.0002.mp4"),
        ("film_0001.mp4", "film_0002.mp4"),
        ("film (1).mp4", "film (2).mp4"),
        ("film_0_81.mp4", "film_81_162.mp4"),
        ("film_41to181.mp4", "film_200to300.mp4"),
        ("id_12-15.mp4", "id_15-18.mp4"),
        ("0042_12-15.mp4", "0042_15-18.mp4"),
        ("dQw4w9WgXcQ_000012_000022.mp4", "dQw4w9WgXcQ_000022_000032.mp4"),
        ("film-0:00:10.000-0:00:15.000.mp4", "film-0:01:10.000-0:01:15.000.mp4"),
        ("filmSUB12_15.mp4", "filmSUB20_25.mp4"),
        ("0001-Scene-001.mp4", "0001-Scene-002.mp4"),
        ("film-Scene-001_0-81.mp4", "film-Scene-002_81-162.mp4"),
        ("v_Archery_g01_c01.avi", "v_Archery_g01_c02.avi"),
        ("film.mp4", "film_clip1.mp4"),
        ("0123456789abcdef-01234567-00000000.mp4", "0123456789abcdef-89abcdef-01234567-00005062.mp4"),
        ("same.mp4", "same.mov"),
    ],
)
def test_names_of_pieces_share_a_source(a, b):
    assert len(set(sources_of(clips_of(a, b, "other.mp4")))) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("0001.mp4", "0002.mp4"),
        ("clip_0001.mp4", "clip_0002.mp4"),
        ("video12.mp4", "video13.mp4"),
        ("scene-3.mp4", "scene-4.mp4"),
        ("one/a.mp4", "one/b.mp4"),
        ("my_video_clip_0001.mp4", "my_video_clip_0002.mp4"),
        ("IMG_20230101_120000.mp4", "IMG_20230101_120500.mp4"),
        ("1/clip_1.mp4", "2/clip_1.mp4", "2/clip_2.mp4"),
        ("1/video.mp4", "2/video.mp4", "1/rgb.mp4", "2/rgb.mp4"),
        ("1/video-Scene-001.mp4", "2/video-Scene-001.mp4"),
        ("beach.mp4", "beach house.mp4", "a.mp4", "b.mp4"),
        ("film_clip1.mp4", "movie_clip1.mp4"),
        tuple(f"pexels_{i}.mp4" for i in range(201)),
    ],
)
def test_numbers_alone_and_folders_say_nothing(names):
    assert len(set(sources_of(clips_of(*names)))) == len(names)


def test_the_captions_file_and_the_file_itself_go_before_names():
    clips = [*clips_of("a.mp4", "b.mp4", source="one"), *clips_of("film_clip1.mp4", source="two"), *clips_of("c.mp4")]
    sources = sources_of([*clips, *clips_of("film_clip2.mp4")])
    assert sources[0] == sources[1] and len(set(sources)) == 4
    own = [Clip(f"film_clip{i}.mp4", "x", 0.0, source=str(i)) for i in range(3)]
    assert len(set(sources_of(own))) == 1  # an id of each clip is no source
    assert len(set(sources_of([*own, own[0]]))) == 1
    linked = [Clip("a.mp4", "x", 0.0, place=(1, 2)), Clip("b.mp4", "x", 0.0, place=(1, 2)), *clips_of("c.mp4")]
    assert len(set(sources_of(linked))) == 2
    names = [("x.mp4", (1, 2)), ("film_clip1.mp4", (1, 2)), ("film_clip2.mp4", (1, 3)), ("c.mp4", (1, 4))]
    for turned in (names, names[::-1]):
        assert len(set(sources_of([Clip(name, "x", 0.0, place=place) for name, place in turned]))) == 2


def test_no_source_lies_on_both_sides_and_as_many_are_held_out():
    clips = clips_of(*(f"film{letter}-Scene-{i:03}.mp4" for letter in "abcdefghijkl" for i in range(1, 5)))
    for seed in range(20):
        held_out, train = hold_out(clips, 8, seed)
        assert len(held_out) == 8 and len(train) == 40 and set(held_out).isdisjoint(train)
        assert {find_origin(clip.video).video for clip in held_out}.isdisjoint(
            find_origin(clip.video).video for clip in train
        )
        assert (held_out, train) == hold_out(clips, 8, seed)
    assert len({tuple(names(hold_out(clips, 8, seed)[0])) for seed in range(20)}) > 1


def test_videos_of_their_own_are_split_clip_by_clip():
    clips = clips_of(*(f"{i}.mp4" for i in range(50)))
    held_out, train = hold_out(clips, 8, 0)
    assert len(held_out) == 8 and len(train) == 42 and {*held_out, *train} == set(clips)
    assert [len(part) for part in hold_out(clips[:4], 8, 0)] == [1, 3]
    assert [names(part) for part in hold_out(clips[:1], 8, 0)] == [["0.mp4"], ["0.mp4"]]


def test_where_no_source_fits_the_rest_of_the_smallest_is_left_out_named(caplog):
    clips = clips_of(*(f"film{x}_clip{i}.mp4" for x, count in (("a", 12), ("b", 10), ("c", 20)) for i in range(count)))
    held_out, train = hold_out(clips, 4, 0)
    assert len(held_out) == 4 and all("filmb" in clip.video for clip in held_out)
    assert len(train) == 32 and not any("filmb" in clip.video for clip in train)
    assert caplog.text.count("of the 10 clips of the source of filmb_clip") == 1
    assert "the other 6 are left out, of training as well" in caplog.text


def test_clips_of_one_source_are_held_out_by_clip_and_that_is_said(tmp_path, caplog):
    for i in range(6):
        make_clip(tmp_path / f"film-Scene-{i:03}.mp4", 10, 8)
        (tmp_path / f"film-Scene-{i:03}.txt").write_text("x")
    data = VideoData(str(tmp_path), frames=4, fps=8, height=16, width=16, workers=0)
    with caplog.at_level(logging.WARNING):
        data.setup()
    assert (len(data.val_set), len(data.train_set)) == (1, 5)
    assert caplog.messages == ["all clips are of one source video: val/loss will be of scenes that are trained on"]


def test_two_captions_of_a_video_are_on_one_side_and_each_pass_meets_both(tmp_path):
    for name in "abcdefgh":
        make_clip(tmp_path / f"{name}.mp4", 10, 8)
    rows = [f"{name}.mp4,{text}" for name in "abcdefgh" for text in ("one", "two")]
    (tmp_path / "metadata.csv").write_text("\n".join(["video,prompt", *rows]))
    data = VideoData(str(tmp_path), frames=4, fps=8, height=16, width=16, workers=0, val_clips=2)
    data.setup()
    held_out, train = ([(clip.video, clip.prompt) for clip in part.clips] for part in (data.val_set, data.train_set))
    assert (
        len(held_out) == 2
        and {video for video, _ in held_out}.isdisjoint(video for video, _ in train)
        and len(train) == 14
    )
    picks = [pick for _, batch in zip(range(14), data.train_dataloader().batch_sampler, strict=False) for pick in batch]
    assert len({pick.index for pick in picks}) == 14


def test_a_size_without_a_clip_to_train_on_is_passed_over():
    batches = Passes([[], [0, 1, 2], []], batch_size=2, seed=0)
    met = [pick.index for _, batch in zip(range(6), batches, strict=False) for pick in batch]
    assert sorted(met) == sorted([0, 1, 2] * 4)
    assert next(batches.positions()) == [0, 2, 0]
    with pytest.raises(ValueError, match="there is no clip to train on"):
        Passes([[], []], 1, 0)


def told(split, *names, source=""):
    return [Clip(name, "x", 0.0, source, split=split) for name in names]


def test_what_the_captions_hold_out_is_held_out_and_no_other(caplog):
    clips = [*told("train", "a.mp4", "b.mp4"), *told("val", "c.mp4", "d.mp4", "e.mp4"), *told("", "f.mp4")]
    for seed in range(5):
        held_out, train = hold_out(clips, 8, seed)
        assert sorted(names(held_out)) == ["c.mp4", "d.mp4", "e.mp4"]
        assert sorted(names(train)) == ["a.mp4", "b.mp4", "f.mp4"]
    assert not caplog.records
    held_out, train = hold_out(clips, 2, 0)
    assert len(held_out) == 2 and sorted(names(train)) == ["a.mp4", "b.mp4", "f.mp4"]
    assert [record.getMessage() for record in caplog.records] == [
        "of the 3 clips of the split val 2 are validated with (data.val_clips)"
    ]


def test_a_split_through_a_source_is_said_and_one_without_training_refused(caplog):
    clips = [*told("train", "a.mp4", "b.mp4", source="film"), *told("val", "c.mp4", source="film")]
    assert [names(part) for part in hold_out(clips, 8, 0)][0] == ["c.mp4"]
    assert "on both sides of the captions' split: 1;" in caplog.text
    with pytest.raises(ValueError, match="all 2 clips are of the split val: expected some of train"):
        hold_out(told("val", "a.mp4", "b.mp4"), 8, 0)


@pytest.mark.parametrize("table", [True, False])
def test_the_captions_file_may_say_the_split(table, tmp_path, caplog):
    splits = ["train", "Validation", "", "test", "val"]
    videos = [make_clip(tmp_path / f"{i}.mp4", 4, 8).name for i in range(5)]
    if table:
        lines = ["video,prompt,Split", *(f"{video},x,{split}" for video, split in zip(videos, splits, strict=True))]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    else:
        lines = [json.dumps({"video": x, "prompt": "x", "split": y}) for x, y in zip(videos, splits, strict=True)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = VideoData(str(tmp_path), frames=2, fps=8, height=16, width=16)
    data.setup()
    assert sorted(data.train_set.names()) == ["0.mp4", "2.mp4"] and sorted(data.val_set.names()) == ["1.mp4", "4.mp4"]
    assert "of the split test, which aren't read: 1" in caplog.text
    file = tmp_path / ("metadata.csv" if table else "metadata.jsonl")
    file.write_text(file.read_text().replace("Validation", "part 3"))
    with pytest.raises(ValueError, match='(row 3|line 2): split is "part 3", expected train, val, validation, test'):
        VideoData(str(tmp_path), frames=2, fps=8, height=16, width=16).setup()
