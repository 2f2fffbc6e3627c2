"""Raw videos with known defects, made on the spot."""

from fractions import Fraction

import av
import cv2
import numpy as np

from train.sources import read_rows

FPS = 16


def read_captions(folder):
    """(video, prompt) of each row."""
    return [(row.video, row.prompt) for row in read_rows(folder)]


def scene(seed, frames=88, height=480, width=848, speed=2.0):
    """Smooth coloured texture under a moving view, with a bright object that crosses it."""
    rng = np.random.default_rng(seed)
    canvas = rng.integers(30, 220, (12, 20, 3)).astype(np.float32)
    canvas = cv2.resize(canvas, (width + 400, height + 200), interpolation=cv2.INTER_CUBIC)
    canvas = np.clip(canvas + rng.normal(0, 12, canvas.shape), 0, 255).astype(np.uint8)
    color = rng.integers(120, 256, 3).tolist()
    for i in range(frames):
        x, y = round(speed * i) % 400, round(speed * i / 2) % 200
        picture = canvas[y : y + height, x : x + width].copy()
        cv2.circle(picture, (round(width * (i + 5) / (frames + 10)), height // 2), height // 6, color, -1)
        yield picture


def write(path, pictures, fps=FPS, crf=20, pix_fmt="yuv420p", times=None):
    """H.264 of RGB pictures. times: of each picture, in units of 1/1000 s, for a variable frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "preset": "ultrafast"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.pix_fmt = pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def letterbox(pictures, bar=60):
    for picture in pictures:
        picture[:bar] = 0
        picture[-bar:] = 0
        yield picture


def subtitle(pictures, text="WHAT ARE YOU DOING HERE?"):
    for picture in pictures:
        for thickness, color in ((7, (0, 0, 0)), (2, (255, 255, 255))):
            where = (120, picture.shape[0] - 40)
            cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, 1.4, color, thickness, cv2.LINE_AA)
        yield picture
