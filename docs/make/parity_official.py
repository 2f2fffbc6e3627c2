"""The official package as it is, for parity.py. Run by the scorer's own Python.

python -I parity_official.py evaluate VIDEOS WORK DIMENSION     as its own documentation says, on a CPU
python -I parity_official.py weights FOLDER SEED DIMENSION      random weights of its model, where it looks for them
"""

import os
import sys
from pathlib import Path


def evaluate(videos, work, dimension):
    import torch
    import vbench

    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{"map_location": "cpu", **kwargs})
    info = Path(vbench.__file__).with_name("VBench_full_info.json")
    vbench.VBench(torch.device("cpu"), str(info), work).evaluate(
        videos, dimension, dimension_list=[dimension], local=True
    )


def make_weights(folder, seed, dimension):
    import torch

    torch.manual_seed(int(seed))
    path, state, size = {"dynamic_degree": raft, "motion_smoothness": amt, "imaging_quality": musiq,
                         "human_action": umt, "overall_consistency": viclip}[dimension]()  # fmt: skip
    file = Path(folder) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file, _use_new_zipfile_serialization=False)  # which may be followed by anything
    with file.open("ab") as end:
        end.write(b"\0" * (size - file.stat().st_size))


def raft():
    from argparse import Namespace

    from vbench.third_party.RAFT.core.raft import RAFT

    model = RAFT(Namespace(small=False, mixed_precision=False, alternate_corr=False))
    return "raft_model/models/raft-things.pth", {f"module.{k}": v for k, v in model.state_dict().items()}, 21_108_000


def amt():
    import vbench
    from omegaconf import OmegaConf
    from vbench.third_party.amt.utils.build_utils import build_from_cfg

    config = OmegaConf.load(Path(vbench.__file__).with_name("third_party") / "amt/cfgs/AMT-S.yaml")
    return "amt_model/amt-s.pth", {"state_dict": build_from_cfg(config.network).state_dict()}, 0


def musiq():
    from pyiqa.archs.musiq_arch import MUSIQ

    return "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", MUSIQ(pretrained=False).state_dict(), 0


def umt():
    from timm.models import create_model
    from vbench.third_party.umt.models import modeling_finetune  # noqa: F401, registers the model

    model = create_model(
        "vit_large_patch16_224", pretrained=False, num_classes=400, all_frames=16, tubelet_size=1,
        use_learnable_pos_emb=False, drop_path_rate=0.2, use_checkpoint=False, checkpoint_num=16,
        use_mean_pooling=True, init_scale=0.001,
    )  # fmt: skip
    return "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth", model.half().state_dict(), 0


def viclip():
    import shutil

    import clip
    import torch
    from vbench.third_party.ViCLIP.viclip import ViCLIP

    words = Path(os.environ["VBENCH_CACHE_DIR"]) / "ViCLIP" / "bpe_simple_vocab_16e6.txt.gz"
    words.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(clip.__file__).with_name(words.name), words)
    model = ViCLIP(pretrain=None)
    for parameter in model.parameters():  # some are left as the memory was
        torch.nn.init.normal_(parameter, std=0.02)
    return "ViCLIP/ViClip-InternVid-10M-FLT.pth", {"model": model.state_dict()}, 0


if __name__ == "__main__":
    {"evaluate": evaluate, "weights": make_weights}[sys.argv[1]](*sys.argv[2:])
