"""Alpha of a LoRA's layers where no tensor says it: in diffusers' files and in peft's."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..checks import is_real
from .files import read_metadata

logger = logging.getLogger(__name__)

METADATA = "lora_adapter_metadata"  # of a header: what diffusers reads alpha from
PEFT_CONFIG = "adapter_config.json"  # beside a file of peft, which says alpha

Alpha = Callable[[str, int], Any]  # of a layer, by the file's own name of it and by its rank; not checked yet


def find_alpha(file: Path, names: Iterable[str]) -> Alpha:
    """By what a file's header, or peft's configuration beside it, says; else each layer's rank.

    names: of the file's tensors. Raises ValueError for a configuration that is none.
    """
    text, beside = read_metadata(file).get(METADATA), file.with_name(PEFT_CONFIG)
    where = f"{file}'s {METADATA}"
    if text is None and beside.is_file():
        text, where = beside.read_text(encoding="utf-8", errors="replace"), str(beside)
    if text is None:
        if any(name.startswith("base_model.") for name in names):
            logger.warning("%s is of peft, without %s beside it: alpha is taken to be the rank", file, PEFT_CONFIG)
        return lambda name, rank: rank
    try:
        config = {key.removeprefix("transformer."): value for key, value in json.loads(text).items()}
        patterns = {re.compile(rf"(.*\.)?({key})"): x for key, x in (config.get("alpha_pattern") or {}).items()}
    except (ValueError, AttributeError, RecursionError, re.error):
        raise ValueError(f"{where} is no configuration of peft: fetch or save it again") from None

    def alpha(name: str, rank: int) -> Any:
        value = next((x for key, x in patterns.items() if key.fullmatch(name)), config.get("lora_alpha", rank))
        return value * rank**0.5 if config.get("use_rslora") and is_real(value) else value  # there alpha / sqrt(r)

    return alpha
