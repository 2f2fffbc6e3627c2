"""What the HTML pages share: the head and its style, lists, and strips of videos' frames inside the file."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from html import escape
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from fps_flex.checks import some
from train.common.videos import ClipError, probe, sample_frames

from .suite import Plan, Planned

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
Strip = list[Image.Image]  # frames of a video
STRIP, ROWS, WIDEST = 5, 96, 2000  # frames of a strip, their height in pixels, and the strip's greatest width


def write_page(title: str, parts: Iterable[str]) -> str:
    """title: as text. parts: as HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def embed(data: bytes, kind: str, alt: str) -> str:
    """A picture, and what is to be seen in it."""
    return f'<img alt="{escape(alt)}" src="{to_url(data, kind)}">'


def to_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def list_items(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def isolate(text: str) -> str:
    """A prompt or a name in its own direction of writing."""
    return f'<bdi dir="auto">{escape(text)}</bdi>'


def take_strips(folder: Path, plan: Plan) -> tuple[list[tuple[Planned, Strip]], str]:
    """Of the first video of each dimension that can be read; one of several dimensions is shown once.

    Also a line of the videos that are there and can't be shown, and why; empty where there are none.
    """
    strips, left_out, seen = [], {}, set()
    for dimension in plan.dimensions:
        for video in plan.expected(dimension) if dimension not in seen else ():
            file = folder / video.name
            if video.name in left_out or not file.exists():
                continue
            try:
                strips.append((video, take_strip(file)))
                seen.update(video.dimensions)
                break
            except ClipError as error:
                left_out[video.name] = f"{video.name} ({str(error).removeprefix(f'{file}: ')})"
    what = "1 video" if len(left_out) == 1 else f"{len(left_out):,} videos"
    return strips, f"{what} can't be shown and are left out: {some([*left_out.values()])}" if left_out else ""


def take_strip(path: Path) -> Strip:
    """Frames spread over a video, as high as a strip. Raises ClipError."""
    sampled = sample_frames(path, STRIP / max(probe(path).seconds, 1e-3), ROWS)
    frames = [Image.fromarray(frame) for _, frame in islice(sampled, STRIP)]
    if not frames:
        raise ClipError(f"{path}: has no frame")
    return frames


def join(strip: Strip) -> Image.Image:
    """Side by side."""
    picture = Image.fromarray(np.hstack(strip))
    picture.thumbnail((WIDEST, ROWS))
    return picture


def find_link(video: Path, page: Path) -> str | None:
    """The address of a video for a page in the folder `page`: relative, at most from the folder above.

    None where it lies elsewhere: that address would tell of this machine's folders, and hold only here.
    """
    relative = os.path.relpath(os.path.abspath(video), os.path.abspath(page))
    return None if Path(relative).parts.count("..") > 1 else quote(Path(relative).as_posix())


def show_strip(strip: Strip, video: Path, page: Path, prompt: str, caption: str) -> str:
    """A figure. page: the folder of the page. caption: as HTML."""
    picture = embed(_to_jpeg(join(strip)), "jpeg", f"{len(strip)} frames of the video of: {prompt}")
    link = find_link(video, page)
    if link is None:
        return f"<figure>{picture}<figcaption>{caption} {escape(video.name)}</figcaption></figure>"
    poster = to_url(_to_jpeg(strip[0]), "jpeg")
    player = f'<video controls preload="none" poster="{poster}" src="{escape(link)}"></video>'
    return (
        f'<figure>{picture}<figcaption>{caption} <a href="{escape(link)}">{escape(video.name)}</a></figcaption>'
        f"<details><summary>Play</summary>{player}</details></figure>"
    )


def _to_jpeg(picture: Image.Image) -> bytes:
    data = BytesIO()
    picture.save(data, "jpeg", quality=85)
    return data.getvalue()
