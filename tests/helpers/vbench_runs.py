"""Runs of made-up scores and videos, of the size of VBench's own, and what a browser makes of their reports.

python -m tests.helpers.vbench_runs FOLDER   # writes a run there, and docs/vbench's pictures of its report
"""

import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from eval.generate.jobs import Clip
from eval.vbench.__main__ import command
from eval.vbench.suite import DIMENSIONS, SEEDS, Plan, Planned, write_plan
from train.common.videos import write_video

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
TOGETHER = (  # dimensions that are scored on the same prompts
    ("subject_consistency", "motion_smoothness", "dynamic_degree"), ("background_consistency", "scene"),
    ("aesthetic_quality", "imaging_quality", "overall_consistency"),
    *((name,) for name in ("temporal_flickering", "object_class", "multiple_objects", "human_action", "color",
                           "spatial_relationship", "appearance_style", "temporal_style")),
)  # fmt: skip
MIDDLES = dict(zip(DIMENSIONS, (
    0.95, 0.96, 0.99, 0.98, 0.61, 0.62, 0.66, 0.83, 0.62, 0.94, 0.88, 0.69, 0.36, 0.22, 0.24, 0.25,
), strict=True))  # fmt: skip
YES_OR_NO = ("dynamic_degree", "human_action")


def plan_run(quick=None):
    looks = (
        "a teal",
        "an old",
        "a small",
        "a striped",
        "a dusty",
        "a tall",
        "a round",
        "a quiet",
        "a paper",
        "a glass",
    )
    things = (
        "kettle",
        "ladder",
        "heron",
        "boathouse",
        "lantern",
        "rowing boat",
        "hay barn",
        "fox",
        "stone bench",
        "hat",
    )
    videos = []
    for dimensions in TOGETHER:
        names = [f"{look} {thing}, {dimensions[0].replace('_', ' ')}" for look, thing in product(looks, things)]
        count = quick or DIMENSIONS[dimensions[0]].prompts
        for prompt in names[:count]:
            videos += [
                Planned(f"{prompt}-{i}.mp4", prompt, len(videos), i, dimensions) for i in range(1 if quick else SEEDS)
            ]
    return Plan("0" * 64, tuple(DIMENSIONS), quick, tuple(videos), clip=Clip(16, 96, 160, 8.0))


def build_run(out, quick=None, absent=(), loss=0.0, seed=0, unfiltered=False, shown="a teal kettle"):
    """A run's folder with plan, scores, records and a video of each group of prompts. absent: dimensions not scored.
    shown: how prompts begin whose first video is there.
    """
    plan, rng = plan_run(quick), np.random.default_rng(seed)
    write_plan(out / "plan.json", plan)
    for name in plan.dimensions:
        if name not in absent:
            _write_scores(out, name, plan.expected(name), rng, loss, unfiltered)
    for i, video in enumerate(plan.videos):
        if i < 200:
            _write_record(out, video, seconds=94 + 0.01 * (i % 100))
        if video.index == 0 and video.prompt.startswith(shown):
            _write_shapes(out / "videos" / video.name, seed + i)
    return out


def _write_scores(out, name, videos, rng, loss, unfiltered):
    middle = MIDDLES[name] * (1 - loss)
    prompts = {video.prompt: rng.normal(middle, 0.25 * min(middle, 1 - middle)) for video in videos}
    values = [
        float(np.clip(rng.normal(prompts[video.prompt], 0.1 * min(middle, 1 - middle)), 0, 1)) for video in videos
    ]
    if name in YES_OR_NO:
        values = [float(rng.random() < value) for value in values]
    scale = 100 if name == "imaging_quality" else 1
    record = {
        "dimension": name, "score": float(np.mean(values)), "complete": True, "missing": [], "errors": {},
        "videos": {video.name: scale * value for video, value in zip(videos, values, strict=True)},
        "filtered": not unfiltered if name == "temporal_flickering" else None,
        "scorer": {}, "note": "", "digest": "",
    }  # fmt: skip
    (out / "scores").mkdir(parents=True, exist_ok=True)
    (out / f"scores/{name}.json").write_text(json.dumps(record))


def _write_record(out, video, **more):
    record = {
        "name": video.name[:-4], "prompt": video.prompt, "seed": video.seed, "checkpoint": "runs/mine/last.ckpt",
        "sampler": "unipc", "steps": 50, "guidance": 6.0, "shift": 3.0,
        "fingerprints": {"transformer": "5f1c0b7e93d24a68", "codec": "77aa01c2"}, "density": 0.238, "peak_gb": 21.4,
        "machine": {"device": "an imaginary GPU", "commit": "0123abc", "versions": {"torch": "2.11.0"}},
        "sha256": "0" * 64, **more,
    }  # fmt: skip
    (out / "records").mkdir(parents=True, exist_ok=True)
    (out / f"records/{video.name[:-4]}.json").write_text(json.dumps(record))


def _write_shapes(path, seed):
    """A disc that moves over a slope of colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:96, 0:160]
    slope = rows[..., None] / 96 * rng.uniform(-0.6, 0.6, 3) + columns[..., None] / 160 * rng.uniform(-0.6, 0.6, 3)
    disc, start, step = rng.uniform(-1, 1, 3), rng.uniform(20, 60, 2), rng.uniform(-2, 5, 2)
    frames = []
    for i in range(16):
        inside = (rows - start[0] - i * step[0] / 3) ** 2 + (columns - start[1] - i * step[1]) ** 2 < 18**2
        frames.append(np.where(inside[..., None], disc, slope))
    write_video(path, torch.tensor(np.stack(frames)).permute(3, 0, 1, 2).float().clamp(-1, 1), 8.0)


def find_browser():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def browse(browser, page, *flags):
    with TemporaryDirectory() as profile:
        call = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, Path(page).resolve().as_uri()]
        return subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout


def frame(page, width, height=0):
    """A page that holds another in a frame of that width, since a window has a least width, and that measures it.

    Its title becomes what scrolls: the page's width, and its height.
    """
    script = """
    addEventListener("load", () => {
        const inner = document.querySelector("iframe").contentDocument.documentElement;
        const wide = [...inner.querySelectorAll("body *")].filter(x => !x.closest(".scroll table") &&
            x.getBoundingClientRect().right > innerWidthOfFrame + 1).map(x => x.tagName);
        document.title = JSON.stringify({width: inner.scrollWidth, height: inner.scrollHeight, wide});
    })""".replace("innerWidthOfFrame", str(width))
    content = page.read_text().replace("&", "&amp;").replace('"', "&quot;")
    wrapper = page.with_name(f"{page.stem}-{width}.html")
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><title>?</title><body style="margin:0"><iframe srcdoc="{content}" '
        f'style="border:0;width:{width}px;height:{height or 900}px"></iframe><script>{script}</script>'
    )
    return wrapper


def measure(browser, page, width):
    """{"width", "height", "wide"} of a page in a frame of so many pixels; wide: what sticks out of it."""
    wrapper = frame(page, width)
    dumped = browse(browser, wrapper, "--dump-dom", "--window-size=1400,1000")
    wrapper.unlink()
    return json.loads(re.search(r"<title>(.*?)</title>", dumped)[1].replace("&quot;", '"'))


def photograph(browser, page, width, target, height=None):
    """A screenshot of a page at that width, of its whole height or the first so many pixels."""
    height = height or measure(browser, page, width)["height"]
    wrapper = frame(page, width, height)
    browse(browser, wrapper, f"--screenshot={target}", f"--window-size={max(width, 500)},{height}")
    wrapper.unlink()
    if width < 500:
        from PIL import Image

        Image.open(target).crop((0, 0, width, height)).save(target)


def main(folder):
    from PIL import Image

    out = build_run(Path(folder))
    command(["report", f"--out={out}", "--name=an example of made-up scores"])
    for width, height in ((390, 1900), (1280, 2200)):
        target = Path(f"docs/vbench/report-{width}.png").resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        photograph(find_browser(), out / "report.html", width, target, height)
        Image.open(target).convert("RGB").quantize(255, method=Image.Quantize.MAXCOVERAGE).save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
