"""Train a Wan transformer with FPSAttention.

python -m train.fit --config configs/tiny.yaml
python -m train.fit --config configs/tiny.yaml --ckpt_path last
python -m train.fit --config configs/tiny.yaml --data.folder clips --run runs/clips
python -m train.fit --config configs/tiny.yaml --trainer.devices 2
torchrun --nproc_per_node 2 -m -- train.fit --config configs/tiny.yaml
"""

from __future__ import annotations

import logging
import secrets
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from fps_flex import StepSchedule, TileLayout, density
from fps_flex.choice import describe_cuts
from fps_flex.wan import encoders, linear_codec  # noqa: F401 - so that --help and short class names know them
from fps_flex.wan.base import check_base
from fps_flex.wan.lora import trained
from fps_flex.wan.trained import read_training_checkpoint

from .callbacks import AverageWeights, KeepThreads, LogFirstValidation, LossCurve, Progress, read_losses
from .checkpoints import TOGETHER, Checkpoints, CountSteps
from .common.console import check_no_empty, check_schedule_parts, check_writable, stop
from .common.lock import locked
from .common.refusals import check_known, one_line
from .common.work import find_device, leave_together, wait_for_the_first
from .data import VideoData
from .index import check_encoders
from .module import FlowModule
from .parallel import (
    STRATEGIES,
    Parallel,
    check_parallel,
    check_sequence,
    count_processes,
    describe_processes,
    is_sharded,
)
from .peers import exit_code
from .rehearsal import rehearse
from .resumable import check_taken
from .resume import check_checkpoint, compare_options, find_checkpoint, options_of
from .samples import SampleVideo
from .sequences import Replicated
from .sharding import Sharding
from .stopping import Stopped
from .trainer import Trainer
from .training_log import TrainingLog

EXPECTED = (ValueError, OSError, torch.OutOfMemoryError, torch.distributed.DistError)
INSTEAD = {  # of options that Lightning's users know
    "trainer.max_epochs": "runs end by --trainer.max_steps or --trainer.max_time, resumed parts included",
    "trainer.gradient_clip_algorithm": "gradients are clipped by norm, with --trainer.gradient_clip_val",
    "trainer.limit_train_batches": "--trainer.max_steps is the length of a run",
    "trainer.limit_val_batches": "--data.val_clips is the length of a validation",
}
WANDB_ID = "wandb_id"
PARALLEL = (
    *("parallel.shard", "trainer.strategy", "trainer.accelerator", "trainer.devices", "trainer.num_nodes"),
    "model.lora",
)
Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])


class FitCLI(LightningCLI):
    """--run names the folder that holds all of a run: checkpoints, logs, the sample and the loss curve.

    checkpoint: what the run goes on from; None for a new one. record: what that says of its run. processes: lines that
    say how several share the work.
    """

    checkpoint: Path | None = None
    record: dict[str, Any] | None = None
    wandb_id: str | None = None
    processes: Sequence[str] = ()

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=Seed, default=0, help="what all chance of the run follows from")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=str, default="runs/default", help="folder of this run")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="checkpoint to go on from: a path, 'last', 'best', or 'last-if-any', which begins where there is none",
        )
        parser.add_class_arguments(Parallel, "parallel")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(AverageWeights, "ema")
        parser.add_lightning_class_args(SampleVideo, "sample")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments(PARALLEL, "model.sharded", compute_fn=is_sharded)

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Raises ValueError for parts of a schedule beside a preset's name: the parser would forget the preset."""
        words = name_model_files(sys.argv[1:] if args is None else args)
        super().parse_arguments(parser, words)
        check_schedule_parts(words, parser.parse_args)
        check_no_empty(words)
        check_known(words, parser.parse_args)

    def before_instantiate_classes(self) -> None:
        """What is cheap to check comes before models are built; and a resumed W&B run must know that it is one."""
        if not self.config.run.strip():
            raise ValueError("--run is empty, expected a folder")
        self.checkpoint = find_checkpoint(Path(self.config.run), self.config.ckpt_path)
        if self.checkpoint:
            self.record = read_training_checkpoint(self.checkpoint)["fps_flex"]
        self.check_parallel()
        _check_start(self.config.model, self.config.trainer.accelerator)
        for logger in _wandb_loggers(self.config.trainer.logger):
            before = (self.record or {}).get("options", {}).get(WANDB_ID)
            self.wandb_id = logger.init_args.id = logger.init_args.id or before or secrets.token_hex(4)

    @property
    def parallel(self) -> Parallel:
        return Parallel(**self.config.parallel.as_dict())

    def check_parallel(self) -> None:
        """Raises ValueError for processes that can't be shared out as asked."""
        trainer, sharded = self.config.trainer, self.config.model.sharded
        processes = count_processes(trainer.accelerator, trainer.devices, trainer.num_nodes)
        check_parallel(sharded, self.parallel, processes, trainer.strategy)
        self.processes = describe_processes(sharded, self.parallel, processes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        parallel, trainer, strategy = self.parallel, self.config.trainer, {}
        several = count_processes(trainer.accelerator, trainer.devices, trainer.num_nodes) > 1
        how = (parallel.sequence, parallel.exchange, timedelta(seconds=parallel.timeout))
        if self.config.model.sharded:
            strategy = {"strategy": Sharding(*how)}
        elif several and trainer.strategy in STRATEGIES:
            strategy = {"strategy": Replicated(*how)}
        return super().instantiate_trainer(**strategy, **kwargs)

    @property
    def checkpoints(self) -> Checkpoints:
        (callback,) = (x for x in self.trainer.callbacks if isinstance(x, Checkpoints))
        return callback

    def options(self) -> dict[str, Any]:
        """All that was asked for, as plain values by dotted names."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        return options_of(config, self.model, self.datamodule) | {WANDB_ID: self.wandb_id}


def name_model_files(words: list[str]) -> list[str]:
    """A command line whose --config files that hold an attention alone, as for eval.generate, are the model's."""
    named = [*words]
    for i, word in enumerate(words):
        option, sign, path = word.partition("=")
        path = path if sign else "".join(words[i + 1 : i + 2])
        if option == "--config" and _holds_attention(path):
            named[i] = f"--model{sign}{path if sign else ''}"
    return named


def _holds_attention(path: str) -> bool:
    """Of a file that can't be read the parser tells."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(data, dict) and data.keys() == {"attention"}


def _check_start(model: Namespace, accelerator: str) -> None:
    """Raises ValueError, before weights are read, for a LoRA on none, and for what the device can't compute."""
    if model.lora is not None and model.checkpoint is None:
        raise ValueError("a LoRA is trained beside weights: name them with --model.checkpoint")
    device = torch.device("cpu") if accelerator == "cpu" else find_device()
    check_base(model.base, model.linears, model.lora is not None, device)


def _wandb_loggers(logger: Any) -> Iterator[Namespace]:
    for one in logger if isinstance(logger, list) else [logger]:
        if isinstance(one, Namespace) and one.class_path.endswith("WandbLogger"):
            yield one


def describe(module: FlowModule, data: VideoData) -> str:
    """What is about to be trained, in a few lines. Raises ValueError where videos, patches and tile don't fit."""
    layouts = [module.plan(size, torch.zeros(1)).layout for size in data.sizes()]
    plan = module.plan(data.size, torch.zeros(1))
    layout, attention = plan.layout, module.model.attention
    lines = [
        f"model      {_count(module)}",
        f"clip       {data.frames} frames of {data.height}x{data.width} at {data.fps:g} fps",
        f"tokens     {layout.grid} = {layout.tokens:,}, in {layout.tiles} tiles of {layout.tile}; "
        f"{100 * layout.pad_share:.1f} % of {layout.slots:,} slots are pads",
    ]
    lines += [f"regime     {x}" for x in _regimes(attention.step_schedule, layout)]
    for name, schedule in attention.layer_schedules:
        lines += [f"in layers  {name}: {x}" for x in _regimes(schedule, layout)]
    cuts = dict.fromkeys(describe_cuts(attention, one.tiles) for one in layouts)
    lines += [f"warning    {cut}" for cut in cuts if cut]
    return "\n".join(lines)


def _regimes(schedule: StepSchedule, layout: TileLayout) -> Iterator[str]:
    windows = schedule.windows(layout.tiles)
    for regime, window, share in zip(schedule.regimes, windows, density(layout, windows).tolist(), strict=True):
        scales = "no quantisation" if regime.granularity is None else f"scales by granularity {regime.granularity}"
        yield f"window {window} tiles, density {share:.2f}, {scales}"


def _count(module: FlowModule) -> str:
    """Its parameters; of a LoRA the adapter's beside the frozen ones."""
    parameters, moved = (
        sum(x.numel() for x in part) for part in (module.model.parameters(), trained(module.model).values())
    )
    if module.making.lora is None:
        return f"{parameters / 1e6:.1f} M parameters"
    return f"{moved / 1e6:.2f} M parameters of a LoRA beside {(parameters - moved) / 1e6:.1f} M in {module.making.base}"


def prepare(args: list[str] | None) -> FitCLI:
    """A run that can begin: everything that can be checked has been, and nothing is written but its empty folder.

    Raises whatever is wrong.
    """
    cli = FitCLI(
        FlowModule,
        VideoData,
        trainer_class=Trainer,
        args=args,
        run=False,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": __doc__.splitlines()[0], "exit_on_error": False, "allow_abbrev": False},
    )
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    record = check_checkpoint(cli.checkpoint, module) if cli.checkpoint else None
    data.setup()
    if record:
        check_taken(cli.checkpoint, record, data)
    if data.index:
        check_encoders(data.index, module.codec, module.text)
    cli.checkpoints.options = cli.options()
    changes = compare_options(cli.checkpoint, record["options"], cli.checkpoints.options) if record else []
    description = describe(module, data)
    for size in data.sizes():
        check_sequence(cli.parallel, module.model, module.grid(size), bool(module.teachers))
    rehearse(module, trainer, module.grid(data.size))
    module.codec.load()
    module.text.load()
    check_writable(Path(cli.config.run), "--run")
    if trainer.is_global_zero:
        print("\n".join([description, *cli.processes, *(f"changed    {change}" for change in changes)]))
    return cli


def check_words(args: list[str]) -> None:
    """Raises ValueError for a command line that the parser refuses; nothing is built, and no value tried."""
    try:
        with redirect_stdout(StringIO()), suppress(SystemExit), warnings.catch_warnings(action="ignore"):
            prepare([*args, "--print_config"])
    except ArgumentError as error:
        raise ValueError(one_line(error)) from None


def fit(cli: FitCLI) -> None:
    """Raises whatever ends the run early, once what can be saved is saved."""
    trainer, run = cli.trainer, Path(cli.config.run)
    trainer.loggers = [CSVLogger(run, name="logs"), *trainer.loggers]
    if not cli.config.trainer.callbacks:  # which may hold a bar with options of its own
        trainer.callbacks = [Progress() if isinstance(x, RichProgressBar) else x for x in trainer.callbacks]
    checkpoints = cli.checkpoints
    for callback in trainer.callbacks:
        if isinstance(callback, SampleVideo):
            callback.stop = checkpoints.stop
    others = [callback for callback in trainer.callbacks if callback is not checkpoints]
    others += [CountSteps(checkpoints), KeepThreads(), TrainingLog(), LogFirstValidation(), LossCurve()]
    trainer.callbacks = [*others, checkpoints]  # all is told before it is saved
    with checkpoints.stop.restored_after(), checkpoints.peers:
        if trainer.is_global_zero:  # others may yet wait for it in vain, which only a signal unheard ends
            checkpoints.stop.listen()
        trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True)


def main(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fps_flex").setLevel(logging.INFO)
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", message="LightningCLI.s args parameter")  # which are this process's own, read
    try:
        cli = prepare(args)
        run = Path(cli.config.run)
        lock = locked(run) if cli.trainer.is_global_zero else nullcontext()
        with lock:
            find_checkpoint(run, cli.config.ckpt_path)  # another may have begun here meanwhile
            _fit_or_stop(cli, run)
    except KeyboardInterrupt:
        stop("stopped before training began", code=130)
    except Exception as error:
        line = one_line(error)
        wait_for_the_first()
        hints = (hint for option, hint in INSTEAD.items() if option in line)
        stop("; ".join((line, *hints)), code=2)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        leave_together()
    if cli.trainer.is_global_zero:
        ends = {name: list(values.values()) for name, values in read_losses(run).items() if name.startswith("val/")}
        losses = [f"{name} {values[0]:.3g} -> {values[-1]:.3g}; " for name, values in ends.items() if values]
        print(f"{''.join(losses)}sample.mp4, sample.png and loss.png are in {run}")


def _fit_or_stop(cli: FitCLI, run: Path) -> None:
    """Ends the process in one line where the run ends early."""
    try:
        fit(cli)
    except Stopped as stopped:
        took = f"{stopped}; it took {stopped.seconds_since():.1f} s to get to a sound state and save it"
        _stop_together(took, cli.trainer, stopped.exit_code)
    except TOGETHER as error:
        _stop_together(one_line(error), cli.trainer, 1)
    except Exception as error:
        reason = cli.checkpoints.reason or one_line(error)
        if not isinstance(error, EXPECTED) and reason == one_line(error):
            (run / "error.txt").write_text(traceback.format_exc())
            reason += f" (where it happened is in {run / 'error.txt'})"
        if cli.checkpoints.peers.missing and (launcher := cli.trainer.strategy.launcher):
            launcher.kill(signal.SIGKILL)  # what doesn't answer heeds no other
        stop(reason, exit_code(cli.trainer, 1))


def _stop_together(message: str, trainer: Trainer, code: int) -> NoReturn:
    """What all processes know is said by the first."""
    if not trainer.is_global_zero:
        sys.exit(exit_code(trainer, code))
    stop(message, code)


if __name__ == "__main__":
    main()
