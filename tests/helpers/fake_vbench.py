"""An environment with a stand-in for the official vbench package: its interface, and no model.

A video's value depends on its bytes. What goes wrong with which video is said by behaviour.json in the folder of
weights, and every video that is scored leaves a line in calls.log there.
"""

import json
import os
import sys
import venv
from pathlib import Path

MODULES = ("torchvision", "numpy", "cv2", "decord", "clip", "omegaconf", "easydict", "pyiqa")
FILES = {
    "torch.py": """
def load(path, map_location="cuda", weights_only=True):
    assert (map_location, weights_only) == ("cpu", False)
    return open(path, "rb").read(4)

class cuda:
    is_available = staticmethod(lambda: False)

device = str
""",
    "vbench/__init__.py": """
import importlib, json, os
from .utils import load_json

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.info, self.out = device, full_info_dir, output_path

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        results = {}
        for dimension in dimension_list:
            entries, files = load_json(self.info), os.listdir(videos_path)
            postfix = os.path.splitext(files[0])[1]
            for entry in entries:
                names = [f"{entry['prompt_en']}-{i}{postfix}" for i in range(5)]
                entry["video_list"] = [os.path.join(videos_path, name) for name in names if name in files]
            info = os.path.join(self.out, name + "_full_info.json")
            json.dump(entries, open(info, "w"))
            module = importlib.import_module("vbench." + dimension)
            results[dimension] = getattr(module, "compute_" + dimension)(info, self.device, {}, **kwargs)
        json.dump(results, open(os.path.join(self.out, name + "_eval_results.json"), "w"))
""",
    "vbench/utils.py": """
import json, os, time

CACHE_DIR = os.environ["VBENCH_CACHE_DIR"]

def load_json(path):
    return json.load(open(path, encoding="utf-8"))

def load_dimension_info(path, dimension, lang):
    entries = [entry for entry in load_json(path) if dimension in entry["dimension"]]
    return [video for entry in entries for video in entry["video_list"]], entries

def load_video(path):
    return [0] * (2 + os.path.getsize(path) % 5)

def look(path, dimension):
    name, behaviour = os.path.basename(path), load_json(CACHE_DIR + "/behaviour.json")
    open(CACHE_DIR + "/calls.log", "a").write(dimension + " " + name + "\\n")
    time.sleep(behaviour.get("slow", 0))
    if name in behaviour.get("abort", []):
        os.abort()
    if name in behaviour.get("raise", []):
        raise RuntimeError("it fell over")
    return os.path.getsize(path) % 97 / 97, name in behaviour.get("marked", [])
""",
    "vbench/dynamic_degree.py": """
import torch
from .utils import *

def dynamic_degree(dynamic, video_list):
    results = [{"video_path": path, "video_results": look(path, "dynamic_degree")[1]} for path in video_list]
    return sum(one["video_results"] for one in results) / len(results), results

def compute_dynamic_degree(json_dir, device, submodules_list, **kwargs):
    model = torch.load(CACHE_DIR + "/raft_model/models/raft-things.pth")
    return dynamic_degree(model, load_dimension_info(json_dir, "dynamic_degree", "en")[0])
""",
    "vbench/subject_consistency.py": """
from .utils import *

def subject_consistency(model, video_list, device, read_frame):
    similarity, count, results = 0, 0, []
    for path in video_list:
        images = load_video(path)
        similarity += look(path, "subject_consistency")[0] * (len(images) - 1)
        count += len(images) - 1
        results.append({"video_path": path, "video_results": look(path, "again")[0]})
    return similarity / count, results

def compute_subject_consistency(json_dir, device, submodules_list, **kwargs):
    return subject_consistency(None, load_dimension_info(json_dir, "subject_consistency", "en")[0], device, False)
""",
    "vbench/imaging_quality.py": """
from .utils import *

def technical_quality(model, video_list, device, **kwargs):
    results = [{"video_path": path, "video_results": 100 * look(path, "imaging_quality")[0]} for path in video_list]
    return sum(one["video_results"] for one in results) / len(results) / 100, results

def compute_imaging_quality(json_dir, device, submodules_list, **kwargs):
    return technical_quality(None, load_dimension_info(json_dir, "imaging_quality", "en")[0], device)
""",
    "vbench/color.py": """
from .utils import *

def color(model, video_dict, device):
    total, count, results = 0, 0, []
    for info in video_dict:
        assert info["auxiliary_info"]["color"]
        for path in info["video_list"]:
            value, marked = look(path, "color")
            if not marked:
                total, count = total + value, count + 1
                results.append({"video_path": path, "video_results": value})
    return total / count, results

def compute_color(json_dir, device, submodules_dict, **kwargs):
    return color(None, load_dimension_info(json_dir, "color", "en")[1], device)
""",
    "vbench/motion_smoothness.py": """
import subprocess, urllib.request
from .utils import *

def motion_smoothness(motion, video_list):
    for path in video_list:
        look(path, "motion_smoothness")
        urllib.request.urlopen("http://127.0.0.1:9/amt-s.pth")

def compute_motion_smoothness(json_dir, device, submodules_list, **kwargs):
    if load_json(CACHE_DIR + "/behaviour.json").get("wget"):
        subprocess.run(["wget", "http://127.0.0.1:9/amt-s.pth"], check=True)
    return motion_smoothness(None, load_dimension_info(json_dir, "motion_smoothness", "en")[0])
""",
    "vbench/cli/__init__.py": "",
    "vbench/cli/static_filter.py": """
import os
import torch
from vbench.utils import look

DEVICE = "cuda"

class StaticFilter:
    def __init__(self, args, device):
        assert "dropout" not in args and not args.small and device == "cpu"
        torch.load(args.model)

    def infer(self, path):
        assert DEVICE == "cpu"
        return not look(path, "static_filter")[1]
""",
    "vbench-0.1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n",
}
WEIGHTS = {
    "raft_model/models/raft-things.pth": 21_108_000,
    "amt_model/amt-s.pth": 12_000_000,
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": 108_600_000,
    "dino_model/dino_vitbase16_pretrain.pth": 343_300_000,
    "dino_model/facebookresearch_dino_main/hubconf.py": 1,
    "grit_model/grit_b_densecap_objectdet.pth": 417_000_000,
    "bert_model/bert-base-uncased/config.json": 1,
    "bert_model/bert-base-uncased/vocab.txt": 1,
}


def build_environment(folder, suite, without=()):
    """Its Python. suite: entries of VBench_full_info.json. without: packages to leave out."""
    venv.EnvBuilder(symlinks=True).create(folder)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    files = FILES | {f"{name}.py": "" for name in (*MODULES, "detectron2", "transformers")}
    for name, text in files.items():
        if name.split("/")[0].removesuffix(".py") not in without:
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text, encoding="utf-8")
    if "vbench" not in without:
        (site / "vbench" / "VBench_full_info.json").write_text(json.dumps(suite), encoding="utf-8")
    return folder / "bin" / "python"


def put_weights(folder, names=WEIGHTS):
    """Files of the right size, which take no room."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.truncate(file, WEIGHTS[name])
    behave(folder)
    return folder


def behave(folder, **behaviour):
    Path(folder, "behaviour.json").write_text(json.dumps(behaviour))


def read_calls(folder):
    """What was scored since the last time, as "dimension name"."""
    file = Path(folder, "calls.log")
    calls = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [call for call in calls if not call.startswith("again ")]
