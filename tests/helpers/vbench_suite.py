"""A small suite in the format of VBench's own, with prompts of our own, and results in the format of its scorer."""

import json
import zipfile

import numpy as np
import torch

from eval.vbench.__main__ import command
from eval.vbench.suite import DIMENSIONS, Plan, Planned
from eval.vbench.weights import NEEDS
from tests.helpers import commands
from train.common.videos import write_video

GROUPS = {
    ("temporal_flickering",): ["In a still frame, a lamp", "In a still frame, a stone bench"],
    ("multiple_objects",): ["a spoon and a kettle", "a ladder and a hat"],
    ("human_action",): ["A person is whittling", "A person is juggling"],
    ("subject_consistency", "dynamic_degree", "motion_smoothness"): ["a fox trotting home", "a heron taking off"],
    ("object_class",): ["a kettle", "a ladder"],
    ("color",): ["a teal kettle", "a brown hat"],
    ("appearance_style",): ["A quiet harbour, woodcut", "A mill in the wind, crayon"],
    ("temporal_style",): ["A mill in the wind, zoom in", "A quiet harbour, tilt up"],
    ("overall_consistency", "aesthetic_quality", "imaging_quality"): [
        "a quiet harbour", "A quiet harbour, woodcut", "A quiet harbour", "Ein Café bei Nacht, close-up.",
    ],
    ("scene", "background_consistency"): ["boathouse", "hay barn"],
    ("spatial_relationship",): ["a hat on the left of a kettle, front view", "a spoon under a ladder, front view"],
}  # fmt: skip
PROMPTS = 23  # different ones: one is in two entries


def entries():
    made = []
    for dimensions, prompts in GROUPS.items():
        for prompt in prompts:
            entry = {"prompt_en": prompt, "dimension": list(dimensions)}
            if dimensions == ("color",):
                entry["auxiliary_info"] = {"color": {"color": prompt.split()[1]}}
            made.append(entry)
    return made


def write_suite(path, suite=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries() if suite is None else suite))
    return path


def write_wheel(path):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("vbench/__init__.py", "raise ImportError('not to be imported')")
        wheel.writestr("vbench/VBench_full_info.json", json.dumps(entries()))
    return path


def official(values):
    """{dimension: {file name: value}} as *_eval_results.json has it; the score is the mean, imaging_quality's / 100."""
    results = {}
    for name, videos in values.items():
        score = sum(videos.values()) / len(videos) / (100 if name == "imaging_quality" else 1)
        rows = [{"video_path": f"/data/videos/{file}", "video_results": value} for file, value in videos.items()]
        results[name] = [score, rows]
    return results


def full_results(scale=1.0, seed=0):
    """As the official package would write them for the whole of VBench."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, dimension in DIMENSIONS.items():
        middle, spread = (70.0, 5.0) if name == "imaging_quality" else (0.6, 0.05)
        files = [f"{name} {i}-{j}.mp4" for i in range(dimension.prompts) for j in range(5)]
        values[name] = dict(zip(files, (scale * rng.normal(middle, spread, len(files))).tolist(), strict=True))
    return official(values)


def write_results(folder, results):
    folder.mkdir(parents=True)
    (folder / "x_eval_results.json").write_text(json.dumps(results))
    return str(folder)


def write_score(out, name, score, complete=True, **more):
    (out / "scores").mkdir(parents=True, exist_ok=True)
    record = {"dimension": name, "score": score, "videos": {}, "complete": complete, "missing": [], "filtered": None,
            "scorer": {}, "note": "", **more}  # fmt: skip
    (out / f"scores/{name}.json").write_text(json.dumps(record))


def trust_weights(monkeypatch):
    """Made-up files of the right size count for VBench's weights, as if their checksums were right too."""
    sums = {file.path: file.sha256 for _, files in NEEDS.values() for file in files}
    monkeypatch.setattr(
        "eval.vbench.weights.digest_file", lambda path: next(x for name, x in sums.items() if str(path).endswith(name))
    )


def contents(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def refused(capsys, arguments):
    """The one line in which eval.vbench refuses to go on."""
    return commands.refused(capsys, command, arguments)


def save(path, frames=4, size=16, fps=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(len(path.name))
    write_video(path, torch.rand(3, frames, size, size) * 2 - 1, fps)


def plan_of(*names, clip=None, folder=None, quick=None):
    videos = tuple(
        Planned(name, name[:-6], i, int(name[-5]), ("scene", "background_consistency")) for i, name in enumerate(names)
    )
    return Plan("0", ("background_consistency", "scene"), quick, videos, folder, clip=clip)


def draw_official(name, gpus, even, seed=0):
    """A dimension's [overall, videos] as vbench 0.1.5 forms them, of made-up frames; even: of as many each."""
    rng, about, rows, frames = np.random.default_rng(seed), DIMENSIONS[name], [], []
    for i in range(about.prompts):
        for j in range(5):
            count = 16 if even else int(rng.integers(2, 60))
            values = about.unit * rng.uniform(0.1, 0.9, count)
            row = {"video_path": f"/data/a {name} {i}-{j}.mp4", "video_results": float(values.mean())}
            if name in ("dynamic_degree", "human_action"):
                row["video_results"] = bool(values[0] > 0.4)
            if name == "background_consistency":
                row |= {"video_sim": float(values.sum()), "cnt_per_video": count}
            if name in ("object_class", "multiple_objects", "scene"):
                row |= {"frame_count": count}
            if name in ("appearance_style", "spatial_relationship"):
                row |= {"frame_results": values.tolist()}
            if name == "appearance_style":
                row |= {"cur_sim": float(values[-1])}
            rows.append(row)
            frames.append(count)
    values = np.array([float(row["video_results"]) for row in rows])
    by_frame = about.framed and (gpus == 1 or name not in ("subject_consistency", "spatial_relationship"))
    overall = np.average(values, weights=frames) if by_frame else values.mean()
    if name == "appearance_style" and gpus > 1:
        overall = np.mean([row["cur_sim"] for row in rows])
    return [float(overall) / about.unit, rows]


ROWS = '[{"video_path": "a-0.mp4", "video_results": 0.25}, {"video_path": "a-1.mp4", "video_results": 0.75}]'
