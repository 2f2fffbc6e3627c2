"""The study in small: configs/study/miniature.yaml."""

import yaml

from tests.helpers.commands import ROOT

MINIATURE = ROOT / "configs/study/miniature.yaml"


def words(out, *options, config=MINIATURE):
    return [f"--config={config}", f"--out={out}", *map(str, options)]


def long_base(folder, steps=60):
    """The miniature with more steps of pretraining, of two clips, saved often."""
    base = yaml.safe_load((ROOT / "configs/study/miniature-base.yaml").read_text())
    base["data"]["batch_size"] = 2
    base["trainer"]["max_steps"], base["checkpoint"] = steps, {"every_n_train_steps": 2}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    return f"--pretraining=[{folder / 'base.yaml'}]"
