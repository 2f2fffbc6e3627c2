"""A small suite in the format of VBench's own, with prompts of our own, and results in the format of its scorer."""

import json
import zipfile

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
    said = []
    for dimensions, prompts in GROUPS.items():
        for prompt in prompts:
            entry = {"prompt_en": prompt, "dimension": list(dimensions)}
            if dimensions == ("color",):
                entry["auxiliary_info"] = {"color": {"color": prompt.split()[1]}}
            said.append(entry)
    return said


def write_suite(path, said=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries() if said is None else said))
    return path


def write_wheel(path):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("vbench/__init__.py", "raise ImportError('not to be imported')")
        wheel.writestr("vbench/VBench_full_info.json", json.dumps(entries()))
    return path


def official(values):
    """{dimension: {file name: value}} as *_eval_results.json has it; the score is the mean, imaging_quality's / 100."""
    said = {}
    for name, videos in values.items():
        score = sum(videos.values()) / len(videos) / (100 if name == "imaging_quality" else 1)
        rows = [{"video_path": f"/data/videos/{file}", "video_results": value} for file, value in videos.items()]
        said[name] = [score, rows]
    return said
