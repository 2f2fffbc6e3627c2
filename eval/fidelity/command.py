"""How far FPS attention moves videos from those of dense attention: the same prompts and seeds, or two folders.

python -m eval.fidelity models --checkpoint DENSE --trained FPS.ckpt --prompts FILE --out fidelity
torchrun --nproc-per-node 8 -m eval.fidelity models ...
python -m eval.fidelity folders --reference FOLDER --candidate FOLDER --out fidelity
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fps_flex import FPSAttention
from fps_flex.checks import at_home
from fps_flex.schedule import preset_of
from train.common.console import cli_errors, run_command, writable
from train.common.ranks import rank_and_world

from ..generate.attention import AttentionChanges
from ..generate.command import plan_jobs, read_prompts, resolve_settings
from ..generate.experts import is_trained_lora
from ..generate.jobs import Job, Options
from ..generate.loras import LISTS
from ..generate.models import TextToVideo, trained_attention
from ..generate.records import Records, open_records
from ..generate.videos import make_videos
from .pairs import Row, Video, pair_folders
from .report import check_report, write_report
from .scores import list_folders
from .summary import read_record

REFERENCE = "dense"
NOT_FREE = "trained with FPS attention: no row is training-free, and dense attention is not what they were trained for."
OTHER_WEIGHTS = (
    "joint-trained has other weights than dense: its numbers say how far training moved the videos, not how good they "
    "are. Quality after training is a question for VBench."
)


def models(
    checkpoint: str,
    out: Path,
    trained: str | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    count: int = 1,
    seed: int = 0,
    attention: AttentionChanges | None = None,
    **options: Any,
) -> None:
    """Make videos with dense, quantised, sparse and joint attention and with a model trained for it, and compare.

    What is left out is taken from `trained` where that is given, else from `checkpoint`, and is the same for all rows.

    Args:
        checkpoint: as eval.generate's; its weights make all rows but the last.
        out: folder for the videos of each row and for the report; a run that was stopped goes on where it was.
        trained: a checkpoint that was trained with FPS attention, for the row joint-trained.
        prompt: what to show.
        prompts: a text file with a prompt a line, in place of `prompt`.
        count: videos of each prompt.
        seed: of each prompt's first video; its next one has the next.
        attention: to compare with dense attention: options in place of those of training.
        options: of `Options`.
    """
    out, prompts = at_home(out), prompts and at_home(prompts)
    jobs = plan_jobs(read_prompts(prompt, prompts), count, seed)
    named = [path for path in (trained, checkpoint) if path]
    asked = Options(checkpoint=named[0], attention=attention, **options)
    source, settings = resolve_settings(_less_others(asked, named))
    _check_dense(source, attention)
    facts = {"negative_prompt": settings.negative_prompt, "shift": settings.shift, **asdict(settings.clip)}
    planned = plan_rows(checkpoint, trained, source.attention)
    shared = replace(asked, **facts, residual=settings.residual)
    each = [replace(shared, checkpoint=path, attention=how) for _, path, how in planned]
    opened = [resolve_settings(_less_others(one, named)) for one in each]
    _check_trained(checkpoint, trained, [model for model, _ in opened], source)
    kept = [open_records(*pair, out / name) for (name, *_), pair in zip(planned, opened, strict=True)]
    rows = [describe_row(name, records) for (name, *_), records in zip(planned, kept, strict=True)]
    notes = note_on_weights(opened[0][0], trained is not None)
    videos = [Video(job.name, job.prompt, f"{job.prompt[:80]} (seed {job.seed})") for job in jobs]
    names = ("sampler", "steps", "guidance", *(("boundary", "low_noise_guidance") if settings.low_noise else ()))
    with writable(out, *list_folders(out, rows)):
        check_report(out, rows, videos)
        if _make_rows(rows, kept, jobs):
            write_report(out, rows, videos, {**{name: getattr(settings, name) for name in names}, **facts}, notes)


def _less_others(asked: Options, named: list[str]) -> Options:
    """Without the base and the choice of weights that are of another checkpoint's, where this has none.

    Where none of those named has, they stay, to be refused.
    """
    fits = {"base": is_trained_lora, "weights": lambda path: path.endswith(".ckpt")}
    others = [x for x, fit in fits.items() if getattr(asked, x) != getattr(Options, x) and any(map(fit, named))]
    return replace(asked, **{x: getattr(Options, x) for x in others if not fits[x](asked.checkpoint)})


def _check_trained(checkpoint: str, trained: str | None, models: list[TextToVideo], source: TextToVideo) -> None:
    """Raises ValueError for a trained model that can't be compared, or is the other one. models: of the rows."""
    if trained and any(model.low for model in models):
        raise ValueError("a trained model of two experts can't be compared here: make its videos, and compare folders")
    if trained and models[0].weights.fingerprint() == source.weights.fingerprint():
        raise ValueError(
            f"{trained} and {checkpoint} are the same weights: leave --trained out, its row would be joint"
        )


def _make_rows(rows: list[Row], kept: list[Records], jobs: list[Job]) -> bool:
    """Returns whether it is this process that writes the report. Raises ValueError as `make_videos`."""
    for records in kept:  # what is in the way of the last row is said before the first
        records.check_all(jobs)
    finished = not any(records.count_missing(jobs) for records in kept)
    complete = True
    for row, records in zip(rows, kept, strict=True):
        print(f"{row.name}: {row.attention}; {row.weights}", flush=True)
        complete &= make_videos(records, jobs)
        records.model.codec.unload()  # each row has its own, and the memory must do for one
    if complete and not (finished and rank_and_world()[0] > 0):
        return True
    print("the last process to finish its videos writes the report, or the first one where all are there", flush=True)
    return False


def _check_dense(model: TextToVideo, asked: AttentionChanges | None) -> None:
    """Raises ValueError for a model whose attention is dense, with what makes it so, and what to do."""
    if not model.attention.is_dense:
        return
    own = trained_attention(model.weights)
    why = (
        "that is what the checkpoint was trained with: name another with --attention.schedule fps "
        "--attention.tile [7,9,6], or a checkpoint trained with it with --trained"
    )
    if own is not None and not own.is_dense:
        options = [f"--attention.{name}" for name in asked.named() if name in ("schedule", "quantize", "sparse")]
        why = f"{' and '.join(options)} made it so, leave out what did"
    raise ValueError(f"there is nothing to compare with dense attention: {why}")


def folders(reference: Path, candidate: Path, out: Path) -> None:
    """Compare the mp4s of one folder with those of the same names in another.

    Videos that can't be read are left out and named. Of records beside the videos, as eval.generate writes them, the
    report shows what they say of weights and machine.

    Args:
        reference: folder of what the others are compared with.
        candidate: folder of what is compared.
        out: folder for the report.
    """
    reference, candidate, out = map(at_home, (reference, candidate, out))
    rows = [Row("reference", reference), Row("candidate", candidate)]
    named = [Video(name, name, name) for name in pair_folders(reference, candidate)]
    prompts = [(read_record(rows[0], video) or {}).get("prompt") for video in named]  # alike are videos of one prompt
    videos = [replace(x, prompt=y) if isinstance(y, str) else x for x, y in zip(named, prompts, strict=True)]
    with writable(out, *list_folders(out, rows)):
        check_report(out, rows, videos)
        write_report(out, rows, videos, {}, [])


def plan_rows(checkpoint: str, trained: str | None, attention: FPSAttention) -> list[tuple[str, str, FPSAttention]]:
    """(row, checkpoint, attention); what would be the same as an earlier row is left out."""
    plain = replace(attention, carrier="input")
    rows = {
        REFERENCE: replace(plain, schedule="dense", tile=None, layers=None),
        "quantised": replace(attention, sparse=False),
        "sparse": replace(plain, quantize=False),
        "joint": attention,
    }
    planned = {}
    for name, how in rows.items():
        if name == REFERENCE or not how.is_dense:
            planned.setdefault((how.step_schedule.regimes, how.layer_schedules), (name, checkpoint, how))
    return [*planned.values()] + ([("joint-trained", trained, attention)] if trained else [])


def describe_row(name: str, kept: Records) -> Row:
    told = describe_weights(kept.model), describe_attention(kept.model.attention)
    return Row(name, kept.videos, *told, kept.shared["density"])


def describe_weights(model: TextToVideo) -> str:
    if trained_attention(model.weights) is None:
        return "released, trained with dense attention"
    steps = "exported for" if model.step is None else f"trained for {model.step} steps with"
    return f"{steps} {'dense' if was_trained_dense(model) else 'FPS'} attention"


def was_trained_dense(model: TextToVideo) -> bool:
    attention = trained_attention(model.weights)
    return attention is None or attention.is_dense


def describe_attention(attention: FPSAttention) -> str:
    if attention.is_dense:
        return "dense"
    rounded = "INT8 and FP8" if attention.codes == "int8" else "FP8"
    parts = [rounded] * attention.quantizes + ["windows"] * attention.is_sparse
    name = preset_of(attention.schedule)
    others = ", ".join(layers for layers, _ in attention.layer_schedules)
    return " and ".join(parts) + (f" of {name}" if name else "") + (f", other in layers {others}" if others else "")


def note_on_weights(model: TextToVideo, with_trained: bool) -> list[str]:
    """What the numbers of these weights don't say. model: that of all rows but joint-trained."""
    were = "were saved for FPS attention. If they were" if model.step is None else "were themselves"
    notes = [] if was_trained_dense(model) else [f"These weights {were} {NOT_FREE}"]
    return notes + ([OTHER_WEIGHTS] if with_trained else [])


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; the same command goes on with what is missing"):
        run_command(
            [models, folders],
            args,
            LISTS,
            as_positional=False,
            description=__doc__.splitlines()[0],
            prog="python -m eval.fidelity",
        )
