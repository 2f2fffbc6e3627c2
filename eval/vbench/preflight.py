"""What each dimension needs of the scorer's environment and of the weights on disk, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .official import Scorer
from .suite import DIMENSIONS, FLICKER

STATIC_FILTER = "static_filter"
HUB = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
CLIP = "https://openaipublic.azureedge.net/clip/models"


@dataclass(frozen=True)
class Weight:
    """A file under VBench's cache folder.

    size: bytes it must have, or None where only `least` is known: the bytes of the tensors in it, or near them.
    source: where the official code, or that of the model, has it from.
    """

    path: str
    source: str
    size: int | None = None
    least: int = 1

    def find_problem(self, folder: Path) -> str | None:
        file = folder / self.path
        if not file.is_file():
            return f"missing {file}"
        size = file.stat().st_size
        if self.size is not None and size != self.size:
            return f"wrong size: {file} has {size:,} bytes, expected {self.size:,}"
        if size < self.least:
            return f"wrong size: {file} has {size:,} bytes, expected {self.least:,} at least"
        return None


CLIP_B = Weight(
    "clip_model/ViT-B-32.pt",
    f"{CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    353_976_522,
)
CLIP_L = Weight(
    "clip_model/ViT-L-14.pt",
    f"{CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
    932_768_134,
)
AESTHETIC = Weight(
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
    least=768 * 4,
)
RAFT = Weight(
    "raft_model/models/raft-things.pth",
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
    21_108_000,
)
AMT = Weight("amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth", least=11_962_172)
MUSIQ = Weight(
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
    least=108_503_300,
)
DINO = (
    Weight(
        "dino_model/dino_vitbase16_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        least=343_000_000,
    ),
    Weight("dino_model/facebookresearch_dino_main/hubconf.py", "git clone https://github.com/facebookresearch/dino"),
)
UMT = Weight(
    "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
    f"{HUB}/l16_ptk710_ftk710_ftk400_f16_res224.pth",
    least=600_000_000,
)
VICLIP = (
    Weight("ViCLIP/ViClip-InternVid-10M-FLT.pth", f"{HUB}/ViClip-InternVid-10M-FLT.pth", least=1_600_000_000),
    Weight(
        "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
        "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
        1_356_917,
    ),
)
BERT = "https://huggingface.co/google-bert/bert-base-uncased"
BERT_WORDS = tuple(Weight(f"bert_model/bert-base-uncased/{name}", BERT) for name in ("config.json", "vocab.txt"))
BERT_MODEL = Weight("bert_model/bert-base-uncased/pytorch_model.bin", BERT, least=430_000_000)
TAG2TEXT = Weight(
    "caption_model/tag2text_swin_14m.pth",
    "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
    4_478_705_095,
)
GRIT = Weight("grit_model/grit_b_densecap_objectdet.pth", f"{HUB}/grit_b_densecap_objectdet.pth", least=400_000_000)
EVERY = ("vbench", "torch", "torchvision", "numpy", "cv2", "decord")
# what a dimension needs beyond EVERY: packages by their name to import, weights
NEEDS: dict[str, tuple[tuple[str, ...], tuple[Weight, ...]]] = {
    "subject_consistency": ((), DINO),
    "background_consistency": (("clip",), (CLIP_B,)),
    "temporal_flickering": ((), ()),
    "motion_smoothness": (("omegaconf",), (AMT,)),
    "dynamic_degree": (("easydict",), (RAFT,)),
    "aesthetic_quality": (("clip",), (CLIP_L, AESTHETIC)),
    "imaging_quality": (("pyiqa",), (MUSIQ,)),
    **{
        name: (("detectron2", "transformers"), (GRIT, *BERT_WORDS))
        for name in ("object_class", "multiple_objects", "color", "spatial_relationship")
    },
    "human_action": (("clip", "timm"), (UMT,)),
    "scene": (("transformers", "timm", "fairscale"), (TAG2TEXT, *BERT_WORDS, BERT_MODEL)),
    "appearance_style": (("clip",), (CLIP_B,)),
    "temporal_style": (("clip",), VICLIP),
    "overall_consistency": (("clip",), VICLIP),
    STATIC_FILTER: ((), (RAFT,)),
}
DETECTRON2 = "-m pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"


@dataclass(frozen=True)
class Readiness:
    """Whether a dimension can be scored, and what is missing if not.

    sources: of each file that is missing or wrong, where it belongs and where it is from.
    """

    dimension: str
    problems: tuple[str, ...]
    sources: tuple[tuple[Path, str], ...] = ()

    @property
    def ready(self) -> bool:
        return not self.problems


def check(dimension: str, scorer: Scorer | None, weights: Path) -> Readiness:
    """Of a dimension as the official package scores it, or of the static filter. weights: VBench's cache folder."""
    if scorer is None:
        how = "python -m eval.vbench setup-scorer DIR makes one"
        return Readiness(dimension, (f"needs --scorer_python, the Python of an environment with vbench ({how})",))
    packages, files = NEEDS[dimension]
    absent = [name for name in (*EVERY, *packages) if not scorer.packages.get(name)]
    problems = [
        f"missing package {name} in the environment of {scorer.python}"
        + (f" (its installation is up to you: {scorer.python} {DETECTRON2})" if name == "detectron2" else "")
        for name in absent
    ]
    wrong = [(file, problem) for file in files if (problem := file.find_problem(weights))]
    sources = tuple((weights / file.path, file.source) for file, _ in wrong)
    return Readiness(dimension, (*problems, *(problem for _, problem in wrong)), sources)


def draw_table(checked: Iterable[Readiness], static_filter: Readiness) -> Group:
    """A row a dimension, and where what is missing is from."""
    checked = sorted(checked, key=lambda one: list(DIMENSIONS).index(one.dimension))
    table = Table("dimension", "", title="what can be scored", title_justify="left")
    table.add_column(overflow="fold")
    needed = {}
    for one in checked:
        needed.update(one.sources)
        if one.dimension == FLICKER:
            needed.update(static_filter.sources)
            filtered = "with the static filter" if static_filter.ready else "without the static filter: "
            table.add_row(one.dimension, "[green]ready", Text(filtered + "; ".join(static_filter.problems)))
        else:
            table.add_row(one.dimension, "[green]ready" if one.ready else "[red]no", Text("\n".join(one.problems)))
    lines = [f"{file}\n  from {source}" for file, source in needed.items()]
    told = ["nothing is downloaded; what is missing belongs at", *lines] if lines else []
    return Group(table, Text("\n".join(told), overflow="fold"))
