"""docs/porting.md: what it names is there, and its examples give what they say."""

import doctest
import importlib
import re

from tests.helpers.commands import ROOT

LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./(fps_flex/\w+)\.py\)")


def test_the_guide_names_functions_that_exist():
    text = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    links = LINK.findall(text)
    assert len(links) > 20
    for name, module in links:
        target = importlib.import_module(module.replace("/", "."))
        for part in name.split("."):
            target = getattr(target, part)
        assert target.__module__ == module.replace("/", "."), name


def test_every_line_of_the_algorithm_names_its_function():
    text = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if re.match(r"\| \d+ \|", row)]
    assert len(rows) >= 9 and all(LINK.search(row) for row in rows)


def test_the_guide_shows_pictures_and_files_that_exist():
    text = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets and all((ROOT / "docs" / target).exists() for target in targets if "://" not in target)


def test_every_rule_of_the_checker_is_in_the_guide(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/golden")
    check = importlib.import_module("check")
    text = (ROOT / "docs/porting.md").read_text(encoding="utf-8").lower()
    assert all(f"**{rule}**" in text for rule in check.ORDER)


def test_the_worked_examples_of_the_guide():
    failed, tried = doctest.testfile(str(ROOT / "docs/porting.md"), module_relative=False)
    assert tried > 10 and not failed
