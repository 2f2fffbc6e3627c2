"""Settings that go along when diffusers saves a transformer with FPS attention: its own files don't say them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .weights import SETTINGS
from .writing import write_json

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

logger = logging.getLogger(__name__)


class SaveConfig:
    """In the place of a transformer's save_config, with which save_pretrained and push_to_hub begin.

    An object that holds the transformer, so that a copied or pickled one saves itself.
    settings: what `read_saved_settings` gives.
    """

    def __init__(self, transformer: WanTransformer3DModel, settings: dict[str, Any]) -> None:
        self.transformer, self.settings = transformer, settings

    def __call__(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Write fps_flex.json, and config.json as diffusers does, which may push the folder to the hub.

        Where layers have got other processors since, config.json alone: nothing would say of which.
        """
        folder = Path(save_directory)
        ours = getattr(vars(self.transformer).get("_fps_flex"), "processors", ())
        others = [i for i, block in enumerate(self.transformer.blocks) if block.attn1.processor not in ours]
        if others:
            logger.warning("%s: without %s, since blocks %s have another attention by now", folder, SETTINGS, others)
        elif not folder.is_file():  # diffusers refuses it
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{SETTINGS}.part"
            write_json(temporary, self.settings)
            temporary.replace(folder / SETTINGS)
            logger.warning(
                "%s: from_pretrained alone gives it dense attention; call install_trained(transformer, %r) after it",
                folder,
                str(folder),
            )
        type(self.transformer).save_config(self.transformer, save_directory, *args, **options)
