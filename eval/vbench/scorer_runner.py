"""The official VBench, one dimension, one video after the other. Run by the scorer's own Python, on its own.

    python -I scorer_runner.py describe DEVICE        prints what this environment has, as JSON
    python -I scorer_runner.py score JOB.json         scores; a line of JSON for each video, as soon as it is done

It must not import anything of this project: that environment has other versions of everything.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import shutil
import socket
import sys
import threading
from pathlib import Path

PACKAGES = ("vbench", "torch", "torchvision", "numpy", "cv2", "decord", "clip", "timm", "pyiqa", "omegaconf",
            "easydict", "transformers", "fairscale", "detectron2")  # fmt: skip
VERSIONS = ("vbench", "torch", "torchvision", "numpy", "opencv-python", "decord", "openai-clip", "timm", "pyiqa",
            "transformers", "detectron2")  # fmt: skip
# the function of a dimension's module that scores a list of videos, where it isn't named like the dimension
INNER = {"aesthetic_quality": "laion_aesthetic", "imaging_quality": "technical_quality"}


def describe(device):
    """Whether packages are there is found without importing them; torch is imported where a GPU may be used."""
    packages = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpu = device != "cpu" and packages["torch"] and importlib.import_module("torch").cuda.is_available()
    vbench = importlib.util.find_spec("vbench")
    suite = str(Path(vbench.origin).with_name("VBench_full_info.json")) if vbench and vbench.origin else None
    return {"versions": {"python": platform.python_version(), **versions}, "packages": packages, "suite": suite,
            "device": "cuda" if gpu else "cpu"}  # fmt: skip


def score(job, send):
    """job: dimension, device, info (entries of the suite), videos (folder), work (folder), items (see filter_static)"""
    refuse_network()
    die_with_parent(job["work"])
    os.chdir(job["work"])
    torch = importlib.import_module("torch")
    # the official code gives torch.load no arguments that newer versions want, nor any that a CPU needs
    torch.load = functools.partial(torch.load, map_location="cpu", weights_only=False)
    if job["dimension"] == "static_filter":
        return filter_static(job, torch.device(job["device"]), send)
    from vbench import VBench

    module = importlib.import_module("vbench." + job["dimension"])
    if job["dimension"] == "human_action":  # loads its model in the function that is called for each video
        module.create_model = functools.cache(module.create_model)
        torch.load = functools.cache(torch.load)
    inner = INNER.get(job["dimension"], job["dimension"])
    setattr(module, inner, one_by_one(module, getattr(module, inner), job["dimension"], send))
    # a torch.device, as the official command has it: for the string "cuda" motion_smoothness scales videos down
    bench = VBench(torch.device(job["device"]), job["info"], job["work"])
    bench.evaluate(job["videos"], "official", dimension_list=[job["dimension"]], local=True, mode="vbench_standard")


def one_by_one(module, function, dimension, send):
    """The official function of a list of videos, called with one at a time: each is sent at once, or what failed."""
    signature, frames = inspect.signature(function), []
    if hasattr(module, "load_video"):
        module.load_video = noting_length(module.load_video, frames)

    def score_all(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        listed = "video_list" if "video_list" in bound.arguments else "video_dict"
        for path, item in split(bound.arguments[listed]):
            send({"start": os.path.basename(path)})
            bound.arguments[listed] = [item]
            frames.clear()
            try:
                _, entries = function(*bound.args, **bound.kwargs)
                result = read_entry(dimension, entries, frames)
            except Exception as error:
                if dimension == "color" and isinstance(error, ZeroDivisionError):
                    result = {"value": None, "weight": 0}  # it saw no such object in any colour: officially left out
                else:
                    result = {"error": f"{type(error).__name__}: {error}"}
            send({"name": os.path.basename(path), **result})
        return None, []

    return score_all


def split(listed):
    """(path, what the official function takes as a list of one) of each video: a path, or a prompt's with one video."""
    for item in listed:
        for path in [item] if isinstance(item, str) else item["video_list"]:
            yield path, path if isinstance(item, str) else {**item, "video_list": [path]}


def read_entry(dimension, entries, frames):
    """The value of a video, and its weight in the mean that the official function takes over all videos."""
    if not entries:
        return {"error": "the official code left it out"}
    entry = entries[0]
    value = float(entry["video_results"])
    if dimension == "subject_consistency":
        return {"value": value, "weight": frames[0] - 1}
    if "frame_results" in entry:  # appearance_style, spatial_relationship
        return {"value": value, "weight": len(entry["frame_results"])}
    return {"value": value, "weight": entry.get("cnt_per_video", entry.get("frame_count", 1))}


def filter_static(job, device, send):
    """VBench's static filter: a prompt's first five static videos. Items: {name, prompt, static: null if unknown}"""
    import argparse

    module = importlib.import_module("vbench.cli.static_filter")
    module.DEVICE = device
    model = os.path.join(os.environ["VBENCH_CACHE_DIR"], "raft_model/models/raft-things.pth")
    args = argparse.Namespace(model=model, small=False, mixed_precision=False, alternate_corr=False)
    static_filter, counts = module.StaticFilter(args, device), {}
    for item in job["items"]:
        count, static = counts.get(item["prompt"], 0), item["static"]
        if count == 5:
            continue
        if static is None:
            send({"start": item["name"]})
            try:
                static = bool(static_filter.infer(os.path.join(job["videos"], item["name"])))
                send({"name": item["name"], "value": float(static), "weight": 1})
            except Exception as error:
                send({"name": item["name"], "error": f"{type(error).__name__}: {error}"})
        counts[item["prompt"]] = count + bool(static)


def noting_length(load_video, lengths):
    def load(*args, **kwargs):
        frames = load_video(*args, **kwargs)
        lengths.append(len(frames))
        return frames

    return load


def refuse_network():
    """What would be downloaded is an error instead. (wget, curl and git are refused through PATH.)"""

    def refuse(*args, **kwargs):
        raise OSError("the scorer may not use the network: weights are never downloaded, put them where they belong")

    socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse


def die_with_parent(work):
    """The parent keeps the other end of standard input open as long as it lives, even if it is killed."""

    def wait():
        os.read(0, 1)  # not sys.stdin, whose lock a thread may not hold at exit
        shutil.rmtree(work, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main():
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what the official code prints goes to the log

    def send(entry):
        channel.write(json.dumps(entry) + "\n")
        channel.flush()

    if sys.argv[1] == "describe":
        send(describe(sys.argv[2]))
    else:
        score(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), send)


if __name__ == "__main__":
    main()
