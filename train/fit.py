"""Train a Wan transformer with FPSAttention.

python -m train.fit --config configs/tiny.yaml
python -m train.fit --config configs/tiny.yaml --ckpt_path last
python -m train.fit --config configs/tiny.yaml --data.folder clips --run runs/clips
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from jsonargparse import ArgumentError
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from fps_flex import density
from fps_flex.files import read_training_checkpoint

from .cached import check_encoders
from .callbacks import AverageWeights, LogFirstValidation, LossCurve, Progress, SampleVideo, SaveStopped, read_losses
from .console import check_writable, one_line, stop
from .data import VideoData
from .module import FlowModule, NonFiniteLoss


class FitCLI(LightningCLI):
    """--run names the folder that holds all of a run: checkpoints, logs, the sample and the loss curve."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/default", help="folder of this run")
        parser.add_argument("--ckpt_path", type=str | None, help="checkpoint to go on from: a path, 'last' or 'best'")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AverageWeights, "ema")
        parser.add_lightning_class_args(SampleVideo, "sample")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("run", "checkpoint.dirpath", compute_fn=checkpoint_folder)
        parser.set_defaults(
            {
                "trainer.logger": False,
                "trainer.max_epochs": -1,
                "trainer.num_sanity_val_steps": -1,
                "trainer.enable_model_summary": False,
                "trainer.check_val_every_n_epoch": None,
                "trainer.use_distributed_sampler": False,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 0,
                "checkpoint.enable_version_counter": False,
            }
        )


def checkpoint_folder(run: str) -> str:
    return str(Path(run) / "checkpoints")


def best_checkpoint(folder: str) -> ModelCheckpoint:
    """best.ckpt, saved right after the validation that found it best; --checkpoint saves last.ckpt at its own steps."""
    return ModelCheckpoint(
        folder,
        "best",
        monitor="val/loss",
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def find_checkpoint(run: Path, wanted: str | None) -> Path | None:
    """The file behind --ckpt_path; None for a new run. `last` is the newest, that of an interrupted run included.

    Raises ValueError when it doesn't exist, and when a new run would overwrite another.
    """
    folder = Path(checkpoint_folder(str(run)))
    if wanted is None:
        if any(folder.glob("*.ckpt")):
            raise ValueError(f"{run} holds a run already: go on with --ckpt_path last, or choose another --run FOLDER")
        return None
    if wanted in ("last", "best"):
        names = ("last.ckpt", "interrupted.ckpt") if wanted == "last" else ("best.ckpt",)
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise ValueError(f"no {' or '.join(names)} in {folder}: leave out --ckpt_path to start a new run")
        return max(found, key=lambda path: path.stat().st_mtime)
    if not Path(wanted).is_file():
        raise ValueError(f"no checkpoint {wanted}: expected a file, 'last' or 'best'")
    return Path(wanted)


def check_checkpoint(path: Path, module: FlowModule) -> None:
    """Raises ValueError when a checkpoint can't be read or holds a model of other shapes."""
    held = read_training_checkpoint(path)["state_dict"]
    for name, tensor in module.state_dict().items():
        shape = tuple(held[name].shape) if name in held else None
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"{path} holds {name} of shape {shape}, this configuration expects {tuple(tensor.shape)}: "
                "use the configuration it was trained with"
            )


def describe(module: FlowModule, data: VideoData, device: torch.device) -> str:
    """What is about to be trained, in a few lines. Raises ValueError where videos, patches and tile don't fit."""
    for size in data.sizes():
        module.plan(size, torch.zeros(1, device=device))
    plan = module.plan(data.size, torch.zeros(1, device=device))
    layout, attention = plan.layout, module.model.attention
    windows = attention.step_schedule.windows(layout.tiles)
    shares = density(layout, windows).tolist()
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    lines = [
        f"model      {parameters / 1e6:.1f} M parameters",
        f"clip       {data.frames} frames of {data.height}x{data.width} at {data.fps:g} fps",
        f"tokens     {layout.grid} = {layout.tokens:,}, in {layout.tiles} tiles of {layout.tile}; "
        f"{100 * layout.pad_share:.1f} % of {layout.slots:,} slots are pads",
    ]
    for regime, window, share in zip(attention.step_schedule.regimes, windows, shares, strict=True):
        scales = "no quantisation" if regime.granularity is None else f"scales by granularity {regime.granularity}"
        lines.append(f"regime     window {window} tiles, density {share:.2f}, {scales}")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fps_flex").setLevel(logging.INFO)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    try:
        cli = FitCLI(
            FlowModule,
            VideoData,
            args=args,
            run=False,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": __doc__.splitlines()[0], "exit_on_error": False},
        )
        run = Path(cli.config.run)
        checkpoint = find_checkpoint(run, cli.config.ckpt_path)
        if checkpoint:
            check_checkpoint(checkpoint, cli.model)
        cli.datamodule.setup()
        if cli.datamodule.index:
            check_encoders(cli.datamodule.index, cli.model.codec, cli.model.text)
        print(describe(cli.model, cli.datamodule, cli.trainer.strategy.root_device))
        cli.model.codec.load()
        cli.model.text.load()
        check_writable(run, "--run")
    except (ValueError, ArgumentError) as error:
        stop(one_line(error), code=2)

    trainer = cli.trainer
    trainer.loggers = [CSVLogger(run, name="logs"), *trainer.loggers]
    folder = checkpoint_folder(str(run))
    if not cli.config.trainer.callbacks:  # which may hold a bar with options of its own
        trainer.callbacks = [Progress() if isinstance(x, RichProgressBar) else x for x in trainer.callbacks]
    trainer.callbacks += [LogFirstValidation(), LossCurve(), SaveStopped(Path(folder)), best_checkpoint(folder)]
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except NonFiniteLoss as error:
        stop(str(error), code=1)
    if trainer.is_global_zero:
        values = list(read_losses(run)["val/loss"].values())
        losses = f"val/loss {values[0]:.3f} -> {values[-1]:.3f}; " if values else ""
        print(f"{losses}sample.mp4, sample.png and loss.png are in {run}")


if __name__ == "__main__":
    main()
