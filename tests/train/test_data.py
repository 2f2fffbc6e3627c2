"""Moving shapes, folders of clips, and the codecs."""

import gc
import logging
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import av
import pytest
import torch
from torch.utils.data import Dataset

from fps_flex.wan.codecs import ByteText, PixelCodec
from tests.helpers.grey_clips import make_clip, make_folder
from tests.helpers.raw_clips import read_captions
from train.common.streams import open_video
from train.common.videos import read_clip
from train.data import Loader, VideoData
from train.folder import VideoFolder, scan_folder
from train.shapes import COLORS, DIRECTIONS, SHAPES, MovingShapes


def test_shapes_are_fixed_by_seed_and_index_and_move_as_their_caption_says():
    clips, other = MovingShapes(40, 8, 32, 32), MovingShapes(40, 8, 32, 32, seed=1)
    assert torch.equal(clips[3]["video"], clips[3]["video"]) and not torch.equal(clips[3]["video"], other[3]["video"])
    for clip in clips:
        video, (_, color, shape, _, direction) = clip["video"], clip["prompt"].split()
        assert video.shape == (3, 8, 32, 32) and video.min() >= -1 and video.max() <= 1
        assert color in COLORS and shape in SHAPES
        weight = (video - video.amin(dim=(2, 3), keepdim=True)).sum(0)
        axis = torch.arange(32.0)
        rows = (weight.sum(2) * axis).sum(1) / weight.sum((1, 2))
        cols = (weight.sum(1) * axis).sum(1) / weight.sum((1, 2))
        moved = torch.stack([rows[-1] - rows[0], cols[-1] - cols[0]])
        assert moved @ torch.tensor(DIRECTIONS[direction], dtype=torch.float32) > 4
        assert moved.abs().min() < 1


def test_the_pixel_codec_loses_nothing():
    codec, video = PixelCodec((2, 4, 2)), torch.randn(2, 3, 4, 16, 6)
    latents = codec.encode(video)
    assert latents.shape == (2, codec.channels, *codec.latent_size((4, 16, 6))) == (2, 48, 2, 4, 3)
    assert torch.equal(codec.decode(latents), video)
    with pytest.raises(ValueError, match=r"clips of \(4, 15, 6\) .* don't divide"):
        codec.latent_size((4, 15, 6))
    with pytest.raises(ValueError, match="stride is"):
        PixelCodec((0, 1, 1))


def test_byte_text_tells_prompts_apart_and_pads_with_zeros():
    states = ByteText(8, 6)(["ab", "ba", "", "a long prompt", "é"], torch.device("cpu"))
    assert states.shape == (5, 6, 8)
    assert not torch.equal(states[0], states[1]) and (states[0, 2:] == 0).all() and (states[2] == 0).all()
    assert torch.equal(states, ByteText(8, 6)(["ab", "ba", "", "a long", "é"], torch.device("cpu")))


def test_a_folder_gives_batches_and_holds_clips_out(tmp_path):
    make_folder(tmp_path / "clips", {f"{i}.mp4": 10 for i in range(6)})
    data = VideoData(str(tmp_path / "clips"), frames=4, fps=8, height=16, width=32, batch_size=2, workers=0)
    data.setup()
    held_out = {item["name"] for item in data.val_set}
    assert len(held_out) == 1 and held_out.isdisjoint(item["name"] for item in data.train_set)
    batches = list(islice(data.train_dataloader(), 4))
    assert [batch["video"].shape for batch in batches] == [(2, 3, 4, 16, 32)] * 4
    assert batches[0]["prompt"] == ["a clip of 10"] * 2


def test_fewer_clips_than_a_batch_still_fill_one(tmp_path):
    make_folder(tmp_path, {"only.mp4": 10})
    data = VideoData(str(tmp_path), frames=4, fps=8, height=16, width=32, batch_size=4, workers=0)
    data.setup()
    assert [batch["video"].shape[0] for batch in islice(data.train_dataloader(), 2)] == [4, 4]


def test_unusable_clips_among_good_ones_are_left_out_named_and_counted(tmp_path, caplog):
    folder = make_folder(tmp_path, {"a.mp4": 10, "gone.mp4": None, "short.mp4": 2, "b.mp4": 10})
    (folder / "gone.mp4").write_text("broken")
    with caplog.at_level(logging.WARNING):
        clips = scan_folder(folder, frames=4, fps=8)
    assert [clip.video for clip in clips] == ["a.mp4", "b.mp4"]
    assert "gone.mp4: can't be decoded" in caplog.text
    assert "short.mp4: lasts 0.25 s, expected at least 0.38 s (4 frames at 8 fps)" in caplog.text
    assert "left out 2 of the 4 clips" in caplog.text


def test_a_clip_that_breaks_when_read_is_replaced_by_the_next(tmp_path, caplog):
    folder = make_folder(tmp_path, {"a.mp4": 10, "b.mp4": 10})
    dataset = VideoFolder(folder, scan_folder(folder, 4, 8), 4, 8, 16, 32)
    (folder / "a.mp4").write_text("broken")
    with caplog.at_level(logging.WARNING):
        assert [dataset[i]["name"] for i in (0, 1, 0)] == ["b.mp4"] * 3
    assert caplog.text.count("left out a clip that broke (1 so far)") == 1 and "a.mp4" in caplog.text
    (folder / "b.mp4").unlink()
    with pytest.raises(ValueError, match="no clip in .* can be read: all 2 broke"):
        dataset[1]


class Decoders(Dataset):
    """How many decoders and frames there are in the process that is asked."""

    def __len__(self):
        return 2

    def __getitem__(self, _):
        return sum(isinstance(x, (av.VideoFrame, av.container.InputContainer)) for x in gc.get_objects())


def test_loader_processes_have_no_decoder_of_ours(tmp_path):
    """They would wait for ever for its threads when they free it."""
    folder = make_folder(tmp_path, {"a.mp4": 10})
    gc.disable()
    try:
        cycle = [av.open(str(folder / "a.mp4"))]
        cycle.append(cycle)
        del cycle
        assert Decoders()[0] > 0
        assert [int(count) for count in Loader(Decoders(), num_workers=1)] == [0, 0]
    finally:
        gc.enable()


class Threads(Decoders):
    """How many threads decode a video, in the process that is asked; 0 is one for each core."""

    def __init__(self, path):
        self.path = path

    def __getitem__(self, _):
        with open_video(self.path) as (_, stream):
            return stream.codec_context.thread_count


def test_loader_processes_decode_on_one_thread(tmp_path):
    """They are as many as their user asked for."""
    folder = make_folder(tmp_path, {"a.mp4": 10})
    assert Threads(folder / "a.mp4")[0] != 1
    assert [int(count) for count in Loader(Threads(folder / "a.mp4"), num_workers=1)] == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no captions in .*: expected metadata.csv with the columns video,prompt, metadata.jsonl, videos2c"),
        ("", "lacks the column video and prompt: it has none"),
        ("video,words\na.mp4,x", "lacks the column prompt: it has video,words, expected video,prompt"),
        ("video,prompt\n", "names no clip"),
        ("video,prompt\na.mp4,x\n,y", "row 3: the column video is empty"),
    ],
)
def test_bad_metadata_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path)


def test_a_folder_without_a_usable_clip_is_an_error(tmp_path):
    folder = make_folder(tmp_path, {"gone.mp4": None})
    with pytest.raises(ValueError, match="none of the 1 clips in .* can be used; the first: .*gone.mp4: no such file"):
        scan_folder(folder, 4, 8)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="data.frames is 0, expected more than 0"):
        VideoData(frames=0)


def test_an_address_in_a_captions_file_is_never_fetched(tmp_path, monkeypatch, caplog):
    """Beside ".", a path of "http:/..." is what FFmpeg takes for an address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    rows = [
        f"http://127.0.0.1:{server.server_port}/a.mp4",
        f"tcp://127.0.0.1:{server.server_port}",
        "concat:a.mp4|b.mp4",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(["video,prompt", *(f"{row},a caption" for row in rows)]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="none of the 3 clips in . can be used; the first: http:/.*: no such file"):
        scan_folder(Path("."), 4, 8)
    there = Path(f"http:/127.0.0.1:{server.server_port}/a.mp4")
    there.parent.mkdir(parents=True)
    make_clip(there.absolute(), 10, 8)
    assert [Path(clip.video) for clip in scan_folder(Path("."), 4, 8)] == [there]
    assert read_clip(there, 4, 8, 16, 16).shape == (3, 4, 16, 16)
    server.shutdown()
    assert asked == []


def test_what_captions_say_can_be_told_from_what_they_said(tmp_path):
    """So that a resumed run lists that they have changed."""
    folder = make_folder(tmp_path, {"a.mp4": 10, "b.mp4": 10})

    def captions():
        data = VideoData(str(folder), frames=4, fps=8, height=16, width=32)
        data.setup()
        return data.clips(), data.captions()

    before = captions()
    assert captions() == before
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("a.mp4,", "a.mp4,other "))
    clips, changed = captions()
    assert clips == before[0] and changed != before[1]
    data = VideoData(None, train_clips=2, val_clips=1)
    data.setup()
    assert data.captions() == ""
