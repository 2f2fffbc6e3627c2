"""Who may import whom, and that the method needs torch and einops alone."""

import ast
import subprocess
import sys
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("fps_flex", "train", "eval")
HOSTS = ("fps_flex.wan", "fps_flex.diffusers", "fps_flex.weights")


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


@cache
def imports_of(module):
    """Modules of this project that a module imports, wherever in it."""
    path, imported = MODULES[module], set()
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            imported.update(f"{origin}.{x.name}" if f"{origin}.{x.name}" in MODULES else origin for x in node.names)
    return imported & MODULES.keys()


def is_in(module, *packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


METHOD = [module for module in MODULES if is_in(module, "fps_flex") and not is_in(module, *HOSTS)]


def test_there_is_a_method_to_look_at():
    assert {"fps_flex.attention", "fps_flex.masks", "fps_flex.quant"} < set(METHOD) and len(MODULES) > 100
    assert "fps_flex.tiles" in imports_of("fps_flex.attention")


@pytest.mark.parametrize("module", METHOD)
def test_the_method_imports_nothing_of_its_hosts(module):
    assert not [other for other in imports_of(module) if is_in(other, *HOSTS, "train", "eval")]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module):
    above = ROOMS[ROOMS.index(module.split(".")[0]) + 1 :]
    assert not [other for other in imports_of(module) if is_in(other, *above)]


def test_no_imports_go_in_a_circle():
    done, under_way = set(), []

    def visit(module):
        assert module not in under_way, " -> ".join([*under_way[under_way.index(module) :], module])
        if module not in done:
            under_way.append(module)
            for other in sorted(imports_of(module) - {module}):
                visit(other)
            done.add(under_way.pop())

    for module in MODULES:
        visit(module)


def needed_by(*names):
    """The distributions that these need, and theirs."""
    needed, todo = set(), [*names]
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in needed:
            continue
        needed.add(name)
        try:
            requires = distribution(name).requires or []
        except ModuleNotFoundError:
            continue
        todo += [line.split(";")[0].split("[")[0].strip(" ()").split("=")[0].split("<")[0].split(">")[0].split("!")[0]
                 .split("~")[0].strip() for line in requires if "extra ==" not in line]  # fmt: skip
    return needed


def test_the_method_runs_with_torch_and_einops_alone(tmp_path):
    """With a folder of links to these two and what they need in place of all that is installed here."""
    for name in needed_by("torch", "einops"):
        try:
            files = distribution(name).files
        except ModuleNotFoundError:  # of another system
            continue
        for part in {file.parts[0] for file in files if file.parts[0] != ".."} - {"__pycache__"}:
            if not (tmp_path / part).exists():
                (tmp_path / part).symlink_to(distribution(name).locate_file(part))
    assert (tmp_path / "torch").is_dir() and not (tmp_path / "numpy").exists()
    code = f"""
import sys
sys.path += [{str(ROOT)!r}, {str(tmp_path)!r}]
import torch
from fps_flex import FPSAttention
attention = FPSAttention("fps", tile=(2, 2, 2), block=8)
plan = attention.plan((2, 4, 4), torch.tensor([0.5]))
print(attention.over_tokens(*torch.randn(3, 1, 1, 32, 8), plan).isfinite().all().item())
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
