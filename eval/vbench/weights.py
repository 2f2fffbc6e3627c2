"""The files that the official package needs, where they are from, and what each dimension needs of them.

sha256 sums: CLIP's are in its addresses and MUSIQ's first digits in its name; that of BERT's weights is the one Hugging
Face keeps with the file, those of its words and of CLIP's vocabulary are pinned by many projects that use the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.common.atomic import digest_file

STATIC_FILTER = "static_filter"
HUB = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
CLIP = "https://openaipublic.azureedge.net/clip/models"
BERT = "https://huggingface.co/google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594"


@dataclass(frozen=True)
class Weight:
    """A file under VBench's cache folder.

    source: where the official code, or that of the model, has it from; how says what lies there: the file, a zip that
    holds it as `member`, or a git repository for the folder that it is in.
    size: bytes it must have, or None where only `least` is known: the bytes of the tensors in it, or near them.
    sha256: its checksum, or the first digits of it; empty where it isn't known.
    """

    path: str
    source: str
    size: int | None = None
    least: int = 1
    sha256: str = ""
    how: Literal["file", "zip", "git"] = "file"
    member: str = ""

    def find_problem(self, folder: Path) -> str | None:
        file = folder / self.path
        if not file.is_file():
            return f"missing {file}"
        size = file.stat().st_size
        if self.size is not None and size != self.size:
            return f"wrong size: {file} has {size:,} bytes, expected {self.size:,}"
        if size < self.least:
            return f"wrong size: {file} has {size:,} bytes, expected {self.least:,} at least"
        if self.sha256 and not (found := digest_file(file)).startswith(self.sha256):
            return f"wrong checksum: {file} has sha256 {found}, expected {self.sha256}"
        return None

    @property
    def bytes(self) -> int:
        """Exact, or the least there can be."""
        return self.least if self.size is None else self.size

    def describe_size(self) -> str:
        if self.how == "git":
            return "a few megabytes"
        if self.size is not None:
            return f"{self.size:,} bytes"
        return f"about {show_bytes(self.least)}" if self.least > 1 else "less than a megabyte"


def show_bytes(count: int) -> str:
    """In decimal units, as disks and downloads are measured."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


CLIP_B_SUM = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
CLIP_L_SUM = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
CLIP_B = Weight("clip_model/ViT-B-32.pt", f"{CLIP}/{CLIP_B_SUM}/ViT-B-32.pt", 353_976_522, sha256=CLIP_B_SUM)
CLIP_L = Weight("clip_model/ViT-L-14.pt", f"{CLIP}/{CLIP_L_SUM}/ViT-L-14.pt", 932_768_134, sha256=CLIP_L_SUM)
AESTHETIC = Weight(
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
    least=768 * 4,
)
RAFT = Weight(
    "raft_model/models/raft-things.pth",
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
    21_108_000,
    how="zip",
    member="models/raft-things.pth",
)
AMT = Weight("amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth", least=11_962_172)
MUSIQ = Weight(
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
    least=108_503_300,
    sha256="358bb6af",
)
DINO = (
    Weight(
        "dino_model/dino_vitbase16_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        least=343_000_000,
    ),
    Weight("dino_model/facebookresearch_dino_main/hubconf.py", "https://github.com/facebookresearch/dino", how="git"),
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
        sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
)
BERT_WORDS = tuple(
    Weight(f"bert_model/bert-base-uncased/{name}", f"{BERT}/{name}", sha256=checksum)
    for name, checksum in (
        ("config.json", "7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20"),
        ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    )
)
BERT_MODEL = Weight(
    "bert_model/bert-base-uncased/pytorch_model.bin",
    f"{BERT}/pytorch_model.bin",
    least=430_000_000,
    sha256="097417381d6c7230bd9e3557456d726de6e83245ec8b24f529f60198a67b203a",
)
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
