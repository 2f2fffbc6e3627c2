"""The tokenizer of a release: the files that make it, and loading it so that it pads and cuts at a prompt's end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .codecs import digest
from .release import PartError, find_part, first_line, load_part, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = "tokenizer"
MODELS = ("tokenizer.json", "spiece.model")  # the first that is there is loaded
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
UNUSED = {  # of tokenizer_config.json: where it lay, who wrote it, and what every call says anew
    "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file", "is_local", "local_files_only",
    "transformers_version", "backend", "padding_side", "truncation_side", "model_max_length", "model_input_names",
}  # fmt: skip


def find_model(path: str) -> Path:
    """The file of a tokenizer's pieces. Raises PartError where there is none."""
    folder = find_part(path, TOKENIZER)
    present = [folder / name for name in MODELS if (folder / name).is_file()]
    if not present:
        raise PartError(f"expected {' or '.join(MODELS)} in {folder}, found neither: fetch it again")
    return present[0]


def digest_tokenizer(path: str) -> str:
    """Of the pieces, and of the settings and special tokens beside them. Raises PartError for what can't be read."""
    file = find_model(path)
    entries = {name: read_json(file.with_name(name)) for name in SETTINGS if file.with_name(name).is_file()}
    config = entries["tokenizer_config.json"]
    entries["tokenizer_config.json"] = {name: config[name] for name in config if name not in UNUSED}
    return digest([digest(file.read_bytes()), entries])


def load_tokenizer(path: str, known: int) -> PreTrainedTokenizerBase:
    """known: tokens of the text encoder. Raises PartError when it can't be loaded and used, or has other tokens."""
    from transformers import AutoTokenizer

    folder = find_model(path).parent
    tokenizer = load_part(AutoTokenizer, path, TOKENIZER, padding_side="right", truncation_side="right")
    if len(tokenizer) > known or tokenizer.pad_token is None:
        what = "has no token for padding" if tokenizer.pad_token is None else f"has {len(tokenizer)} tokens"
        raise PartError(f"{TOKENIZER}/ of {path} {what}, the text encoder knows {known}: take both from one release")
    try:  # some settings are only looked at here
        tokenizer(["a"])
        tokenizer(["a"], padding="max_length", max_length=2, truncation=True, return_attention_mask=True)
    except Exception as error:
        raise PartError(f"{folder} can't be used ({first_line(error)}): fetch it again") from None
    return tokenizer
