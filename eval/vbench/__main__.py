"""From a checkpoint, or a folder of anyone's videos, to a VBench report.

python -m eval.vbench --config configs/vbench.yaml --checkpoint CKPT --suite VBENCH.whl --out RUN
python -m eval.vbench --videos FOLDER --scorer_python SCORER/bin/python --out RUN
torchrun --nproc-per-node 8 -m eval.vbench generate --config configs/vbench.yaml --checkpoint CKPT --out RUN
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from fps_flex.checks import at_home
from train.common.console import add_to_lists, check_schedule_parts, cli_errors, keep_texts
from train.common.ending import heed_signals
from train.common.ranks import rank_and_world
from train.common.refusals import check_known

from ..generate.loras import LISTS
from . import stages
from .compare import PAPER_ROWS
from .official import ScorerOptions
from .plan import PlanOptions
from .preflight import check_all, describe_readiness, weights_command
from .score import score as score_videos
from .scorer_env import setup_command
from .suite import FLICKER, read_plan


def run(
    out: Path,
    plan: PlanOptions,
    scorer: ScorerOptions,
    checkpoint: str | None = None,
    shard: str | None = None,
    name: str | None = None,
    wandb: str | None = None,
    **options: Any,
) -> None:
    """Plan, generate, check, score, aggregate and report; what is done is not done again.

    Args:
        out: folder of the run.
        checkpoint: a .ckpt of train.fit, or Wan2.1 as released, official or diffusers: a folder or a file.
        shard: i/n makes the i-th of n shares of the videos, and stops where those of the others are missing.
        name: of the model, in the report; none takes the folder's.
        wandb: a project of Weights & Biases to log to; WANDB_MODE=offline needs no account.
        options: of `Options`.
    """
    if (checkpoint is None) == (plan.videos is None):
        raise ValueError("expected either --checkpoint CKPT to make videos with, or --videos FOLDER")
    planned = stages.plan(out, plan, scorer.scorer_python)
    if scorer.scorer_python is None:
        stages.say(f"only {FLICKER} is scored, and unfiltered: setup-scorer makes an environment for --scorer-python")
    elif rank_and_world()[0] == 0:  # a line a dimension, before hours are spent on videos
        stages.say("\n".join(describe_readiness(check_all(planned.dimensions, scorer.open()))))
    if checkpoint is not None and not stages.generate(out, shard, planned, checkpoint=checkpoint, **options):
        return
    if rank_and_world()[0] > 0:
        return
    stages.check(out)
    score(out, scorer)
    stages.report(out, name, wandb)


def score(out: Path, scorer: ScorerOptions, dimensions: list[str] | None = None) -> None:
    """Score the videos, one dimension at a time; those scored before, by the same scorer, are not scored again.

    Args:
        out: folder of the run, with its plan.json; scores go to its scores/, one file a dimension.
        dimensions: some of the plan's; none takes all.
    """
    plan = read_plan(out / "plan.json")
    score_videos(plan.find_videos(out), plan, out, dimensions, scorer)


PROG = "python -m eval.vbench"
COMMANDS = {
    "run": run,
    "plan": stages.plan,
    "generate": stages.generate,
    "check": stages.check,
    "score": score,
    "aggregate": stages.aggregate,
    "compare": stages.compare,
    "report": stages.report,
    "setup-scorer": setup_command,
    "weights": weights_command,
}
POSITIONAL = ("aggregate", "setup-scorer")  # of which what is needed is no option
RUNS = (
    "2 to 5 folders, files or zips, or label=PATH; the first is compared with. Five without labels are called after "
    f"the paper's rows: {', '.join(PAPER_ROWS)}."
)


def build_parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The command's parser and those of its parts."""
    about = f"{__doc__.splitlines()[0]} Without a subcommand it is `run`, which goes through all of them."
    whole = ArgumentParser(prog=PROG, description=about, exit_on_error=False, allow_abbrev=False)
    commands, parts = whole.add_subcommands(required=True), {}
    for name, function in COMMANDS.items():
        about = inspect.getdoc(function).splitlines()[0]
        parts[name] = part = ArgumentParser(description=about, exit_on_error=False, allow_abbrev=False)
        part.add_argument("--config", action="config", help="YAML file of options.")
        if name == "compare":
            part.add_argument("runs", nargs="+", help=RUNS)
        groups = find_groups(function)
        part.add_function_arguments(function, as_positional=name in POSITIONAL, skip={"planned", "runs", *groups})
        for group in groups.values():
            part.add_class_arguments(group, as_group=False, as_positional=False)
        commands.add_subcommand(name, part, help=part.description)
        part.prog = f"{PROG} {name}"
    return whole, parts


def find_groups(function: Callable[..., Any]) -> dict[str, type]:
    """The parameters of a command that stand for several options."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return" and is_dataclass(kind)}


def spell_options(args: list[str]) -> list[str]:
    """--prompt-map for --prompt_map, --config=FILE for --config FILE, --dimensions=[a,b] for --dimensions a,b."""
    spelled: list[str] = []
    for text in args:
        if spelled and spelled[-1] in ("--config", "--dimensions"):
            text = f"{spelled.pop()}={text}"
        option, equals, value = text.partition("=")
        if option == "--dimensions" and value and not value.startswith("["):
            value = f"[{value}]"
        option = f"--{option[2:].replace('-', '_')}" if option.startswith("--") else option
        spelled.append(option + equals + value)
    return spelled


def pick_options(args: list[str], parts: dict[str, ArgumentParser]) -> list[str]:
    """The command line with the config of a whole run cut down to what one of its parts takes."""
    if not args or args[0] not in parts or args[0] == "run":
        return args
    known, known_to_run = ({*parts[name].get_defaults().keys()} for name in (args[0], "run"))
    picked = []
    for text in args:
        if text.startswith("--config="):
            with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # of which the parser then tells
                config = yaml.safe_load(Path(text.removeprefix("--config=")).read_text(encoding="utf-8"))
                if isinstance(config, dict):
                    kept = {name: x for name, x in config.items() if name in known or name not in known_to_run}
                    text = f"--config={json.dumps(kept)}"
        picked.append(text)
    return picked


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    args = list(sys.argv[1:] if args is None else args)
    if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
        args = ["run", *args]
    with cli_errors("stopped; the same command goes on with what is missing"):
        whole, parts = build_parsers()
        given = add_to_lists(pick_options(keep_texts(spell_options(args)), parts), LISTS)
        check_schedule_parts(given, whole.parse_args)
        check_known(given, whole.parse_args)
        parsed = whole.parse_args(given)
        chosen = parsed.subcommand
        options = whole.instantiate(parsed)[chosen].as_dict()
        options.pop("config", None)
        options = {name: at_home(value) if isinstance(value, Path) else value for name, value in options.items()}
        for name, kind in find_groups(COMMANDS[chosen]).items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        try:
            result = COMMANDS[chosen](**options)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads what is printed has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
    if chosen == "check" and not result.complete:
        sys.exit(1)


if __name__ == "__main__":
    heed_signals()
    command()
