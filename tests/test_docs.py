"""What the README and the docs say: snippets run, commands parse, paths, links and anchors are there."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "docs/fidelity/README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOMS = ("fps_flex", "train", "eval", "docs", "tests", "configs")
SHELL = {
    "bash",
    "cd",
    "echo",
    "git",
    "hf",
    "pip",
    "python3",
    "sbatch",
    "source",
}  # commands of others; paths in them are looked at
NOT_OURS = {"--use_fast_math"}  # nvcc's


def name(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page, *kinds):
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page):
    """Inline code, of which a line break in the page is a space."""
    return [" ".join(span.split()) for span in CODE.findall(prose(page))]


def command_lines(page):
    """Commands of a page: each of a block, and those in its text."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    words += [shlex.split(span) for span in spans(page) if span.startswith(("python ", "torchrun ", "OMP_NUM_THREADS"))]
    return [part for line in words for part in split_and(line)]


def split_and(words):
    """a && b -> a, b, without variables set before a command."""
    parts = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        elif parts[-1] or not re.match(r"[A-Z_]+=", word):
            parts[-1].append(word)
    return [part for part in parts if part]


def program(words):
    """Module or script of a command, and its arguments; None for another program."""
    if words[0] not in ("python", "torchrun"):
        return None
    at = words.index("-m") + 1 if "-m" in words else 1
    at += words[at] == "--"  # after which torchrun reads no option as its own
    args = words[at + 1 :]
    return words[at], tuple(args[:-1] if args[-1:] == ["..."] else args)


def run(target, args):
    """Exit code and output of a command of this project, in this process."""
    printed, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [target, *args])
        try:
            if target.endswith(".py"):
                patch.syspath_prepend(Path(target).parent.resolve())
                runpy.run_path(target, run_name="__main__")
            else:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
    return code, printed.getvalue()


@cache
def help_of(target, *subcommand):
    code, printed = run(target, [*subcommand, "--help"])
    assert code == 0, f"{target} {subcommand}: {printed[-300:]}"
    return printed


def subcommand_of(target, args):
    """Without one, eval.vbench does all of a run."""
    if target.endswith(".py") or not args:
        return ()
    return ("run",) * (target == "eval.vbench") if args[0].startswith("-") else (args[0],)


def fault(words):
    """What is wrong with a command, or None."""
    if words[0] in SHELL:
        return None
    if (target_and_args := program(words)) is None:
        return f"{words[0]} is no command that the docs may use"
    target, args = target_and_args
    if target == "pytest":
        return None
    if target.endswith(".py") or target == "fps_flex.weights":  # which can't print their configuration
        printed = help_of(target, *subcommand_of(target, args))
        unknown = [arg for arg in args if arg.startswith("--") and arg.partition("=")[0] not in printed]
        return f"unknown {unknown}" if unknown else None
    if "--help" in args or "--print_config" in args:
        help_of(target)
        return None
    code, printed = run(target, [*args, "--print_config"])
    return printed.strip().splitlines()[-1] if code else None


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(page):
    return {slug(re.sub(r"[`*]", "", line.lstrip("#"))) for line in prose(page).splitlines() if line.startswith("#")}


def broken_link(page, target):
    if "://" in target:
        return False
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return not file.exists() or bool(anchor) and anchor not in anchors(file)


def looks_like_our_path(text):
    return re.match(rf"({'|'.join(ROOMS)})/([\w/-]*/)?([\w.-]+\.\w+)?$", text) is not None


@cache
def setup():
    """What a page's Python may take for given: a layer's tensors, and a tiny stock pipeline."""
    from tests.helpers.tiny_wan import tiny_pipeline

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 7 * 9 * 12, 16)
    options = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    return {
        "grid": (7, 9, 12), "sigma": torch.tensor([0.9]), "q": q, "k": k, "v": v,
        "pipe": tiny_pipeline(), "prompt": "a red circle", "options": options,
    }  # fmt: skip


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "porting.md" and blocks(page, "python")], ids=name
)
def test_python_snippets_run_in_order(page, tmp_path, monkeypatch):
    from fps_flex.diffusers import install, uninstall

    monkeypatch.chdir(tmp_path)
    given = setup()
    install(given["pipe"].transformer)
    given["pipe"].transformer.save_pretrained("exported")
    uninstall(given["pipe"].transformer)
    names = dict(given)
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), names)
    with suppress(ValueError):
        uninstall(given["pipe"].transformer)
    if "out" in names:
        assert names["out"].shape == given["q"].shape and names["out"].isfinite().all()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_there_and_take_their_options(page):
    faults = {shlex.join(words): problem for words in command_lines(page) if (problem := fault(words))}
    assert not faults


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*.yaml")), ids=name)
def test_commands_in_comments_of_configurations(config):
    lines = re.findall(r"^#   (\w.*)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    assert not {line: problem for line in lines if (problem := fault(shlex.split(line)))}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_paths_links_and_anchors_are_there(page):
    words = [word for words in command_lines(page) for word in words] + spans(page)
    lost = [word for word in words if looks_like_our_path(word) and not (ROOT / word).exists()]
    broken = [target for target in LINK.findall(prose(page)) if broken_link(page, target)]
    assert not lost and not broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_too_long_and_every_block_names_its_language(page):
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 200] == []
    assert not blocks(page, "")


@pytest.mark.parametrize("page", [page for page in ROOT.glob("docs/*.md") if page.name != "porting.md"], ids=name)
def test_a_page_opens_with_its_command(page):
    assert re.match(r"# [^\n]+\n\n(?:[^\n`][^\n]*\n)*\n?```bash\n", page.read_text(encoding="utf-8"))


def test_the_readme_is_short_and_has_both_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert "pip install -r requirements.txt && python -m train.fit --config configs/tiny.yaml" in lines
    assert "pip install -r requirements-dev.txt && python -m pytest" in lines


def test_the_readme_names_every_command_page_and_configuration():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = [path.parent for room in ("train", "eval") for path in (ROOT / room).glob("*/__main__.py")]
    missing = [name(x).replace("/", ".") for x in packages if f"python -m {name(x).replace('/', '.')}" not in text]
    missing += [name(page) for page in ROOT.glob("docs/*.md") if f"({name(page)})" not in text]
    everything = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing += [name(file) for file in ROOT.glob("configs/*.yaml") if name(file) not in everything]
    assert not missing


def test_every_figure_and_picture_is_shown_somewhere():
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in LINK.findall(prose(page))
        if "://" not in target
    }
    files = [
        *ROOT.glob("docs/*.png"),
        *ROOT.glob("docs/*.jpg"),
        *ROOT.glob("docs/vbench/*.png"),
        *ROOT.glob("docs/results/*"),
    ]
    assert len(files) > 20 and [name(file) for file in files if file.resolve() not in linked] == []


def test_options_named_in_the_text_are_some_commands():
    known = "".join(help_of(*shown) for shown in sorted(shown_commands()))
    known += known.replace("_", "-")  # eval.vbench takes both spellings
    named = {option for page in PAGES for span in spans(page) for option in re.findall(r"^--[\w-]+", span)}
    assert len(named) > 20 and [option for option in sorted(named) if option not in known] == list(NOT_OURS)


def shown_commands():
    """Every command of ours that a page shows, with its subcommand."""
    shown = {program(words) for page in PAGES for words in command_lines(page)}
    ours = [(target, args) for target, args in filter(None, shown) if re.split(r"[./]", target)[0] in ROOMS]
    return {(target, *subcommand_of(target, args)) for target, args in ours}


# the checks themselves


def test_a_wrong_command_is_noticed():
    assert "promps" in fault(shlex.split("python -m eval.generate --checkpoint C --promps x --out y"))
    assert "nowhere.yaml" in fault(shlex.split("python -m eval.generate --config configs/nowhere.yaml"))
    assert "unknown" in fault(shlex.split("python -m fps_flex.weights convert a b --formt official"))
    assert "no command" in fault(["pyhton", "-m", "train.fit"])
    with pytest.raises(ImportError):
        fault(shlex.split("python -m eval.nothing --out x"))


def test_a_wrong_link_is_noticed():
    page = ROOT / "README.md"
    assert broken_link(page, "docs/nowhere.md") and broken_link(page, "docs/train.md#nowhere")
    assert not broken_link(page, "docs/train.md#stop-resume-fail") and not broken_link(page, "#install")
