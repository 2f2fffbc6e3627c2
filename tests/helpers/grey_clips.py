"""Clips of flat greys, whose frames say their own number, and folders of them."""

import struct
from fractions import Fraction

import av
import numpy as np


def encode(path, pictures, fps, pix_fmt="yuv420p", codec="libx264", times=None, **muxer):
    """A video of RGB pictures; `times` says when each is on show, in 1/fps."""
    with av.open(str(path), "w", options=muxer) as container:
        options = {"crf": "1", "g": "5"} if codec == "libx264" else {"qmin": "1", "qmax": "2", "bf": "2"}
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        stream.codec_context.time_base = 1 / Fraction(fps)
        for picture, time in zip(pictures, times or range(len(pictures)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_clip(path, frames, fps, height=64, width=96, **options):
    """A clip whose frame i is a flat grey of level 20 + 4 i."""
    return encode(path, [np.full((height, width, 3), 20 + 4 * i, np.uint8) for i in range(frames)], fps, **options)


def make_corner(path, **options):
    """A dark clip of 64x96 with its top left quarter bright."""
    picture = np.full((64, 96, 3), 20, np.uint8)
    picture[:32, :48] = 220
    return encode(path, [picture] * 4, 8, **options)


def bright_quarters(picture):
    """Of a picture [h, w, ...]: whether the top left, top right, bottom left and bottom right quarter are bright."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    parts = [picture[:rows, :columns], picture[:rows, columns:], picture[rows:, :columns], picture[rows:, columns:]]
    return "".join("#" if part.mean() > 190 else "." if part.mean() < 50 else "?" for part in parts)


def show_turned(path, matrix):
    """Patch the display matrix (a, b, c, d of x' = a x + c y, y' = b x + d y) in an mp4's track header."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    assert content[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    path.write_bytes(content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :])


def levels(clip):
    """The frame number that each frame of a read clip shows; scaling and ten bits darken it by up to two levels."""
    return ((clip.float().mean(dim=(0, 2, 3)) - 19) / 4).round().int().tolist()


def make_folder(folder, rows):
    """Clips of so many frames at 8 fps, and the metadata.csv that names them; None makes no file."""
    folder.mkdir(exist_ok=True)
    for name, frames in rows.items():
        if frames:
            make_clip(folder / name, frames, 8)
    lines = [f"{name},a clip of {frames}" for name, frames in rows.items()]
    (folder / "metadata.csv").write_text("\n".join(["video,prompt", *lines]))
    return folder
