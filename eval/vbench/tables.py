"""A table, once: as Markdown, HTML, CSV, LaTeX or lines for the terminal."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from io import StringIO
from itertools import zip_longest
from typing import Any

from .. import markdown

NONE = "-"
WIDE = 40  # characters from which on a LaTeX column wraps
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}", "*": "{*}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """title: for people. keys: names of its values in CSV. show: them as text. figure: whether it is set right."""

    title: str
    keys: tuple[str, ...]
    show: Callable[..., str] = str
    figure: bool = False


@dataclass(frozen=True)
class Table:
    """rows: a value for each column, or a tuple where a column has several keys; '-' is shown where the first is None.

    The first column names the row.
    """

    columns: tuple[Column, ...]
    rows: list[list[Any]]

    def texts(self) -> list[list[str]]:
        """The cells as people read them, line breaks left out."""
        return [[_show(*pair) for pair in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_markdown(self) -> list[str]:
        sides = "".join("r" if column.figure else "l" for column in self.columns)
        return markdown.table([column.title for column in self.columns], self.texts(), sides).split("\n")

    def to_html(self, caption: str) -> str:
        """In a wrapper that scrolls where the page is too narrow."""
        kinds = [' class="figure"' if column.figure else "" for column in self.columns]
        head = "".join(
            f'<th scope="col"{kind} title="{escape(column.title)}"><bdi>{_breakable(column.title, 12)}</bdi></th>'
            for column, kind in zip(self.columns, kinds, strict=True)
        )
        body = []
        for first, *others in self.texts():
            cells = (f"<td{kind}>{escape(text)}</td>" for text, kind in zip(others, kinds[1:], strict=True))
            body.append(f'<tr><th scope="row"><bdi>{_breakable(first, 20)}</bdi></th>{"".join(cells)}</tr>')
        return (
            f'<p class="note">{escape(caption)}</p>\n'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
        )

    def to_csv(self) -> str:
        """Every value as it is, unrounded, with a point; nothing where there is none."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(key for column in self.columns for key in column.keys)
        for row in self.rows:
            writer.writerow(x for column, cell in zip(self.columns, row, strict=True) for x in _split(column, cell))
        return text.getvalue()

    def to_tex(self, caption: str) -> str:
        """A LaTeX table for the package booktabs, with the figures as rounded as for people."""
        rows, figures = self.texts(), [column.figure for column in self.columns]
        wide = [any(len(row[i]) > WIDE for row in rows) for i in range(len(figures))]
        kinds = ("r" if x else r"p{.3\linewidth}" if long else "l" for x, long in zip(figures, wide, strict=True))
        lines = [_tex_row([column.title for column in self.columns]), r"\midrule"]
        lines += [_tex_row(row, figures) for row in rows]
        return "\n".join([
            r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{escape_tex(caption)}}}",
            rf"\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}",
            r"\end{table}", "",
        ])  # fmt: skip


def _split(column: Column, cell: Any) -> tuple[Any, ...]:
    """A cell's values, one for each key."""
    if len(column.keys) == 1:
        return (cell,)
    return (None,) * len(column.keys) if cell is None else cell


def _show(column: Column, cell: Any) -> str:
    values = _split(column, cell)
    return NONE if values[0] is None else " ".join(column.show(*values).split())


def _breakable(text: str, most: int) -> str:
    """As HTML; words of more characters than `most` may be broken, since a table grows with its longest word."""
    pieces = re.sub(rf"(\S{{{most}}})(?=\S)", "\\1\0", text).split("\0")
    return "<wbr>".join(map(escape, pieces))


def _tex_row(cells: list[str], figures: Iterable[bool] = ()) -> str:
    """Escaped, with a minus where a figure has a hyphen."""
    escaped = map(escape_tex, cells)
    signed = (x.replace("-", "$-$") if figure and x != NONE else x for x, figure in zip_longest(escaped, figures))
    return " & ".join(signed) + r" \\"


def escape_tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """A difference in percent points."""
    return f"{100 * value:+.2f}"


def percents(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def span(low: float, high: float) -> str:
    return f"{points(low)} to {points(high)}"


def count(number: int) -> str:
    return f"{number:,}"
