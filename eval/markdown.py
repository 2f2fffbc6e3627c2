"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str = "") -> str:
    """head: names of the columns. align: a letter a column, l or r; all to the left where it is empty."""
    lines = [*rows]
    if odd := next((row for row in lines if len(row) != len(head)), None):
        raise ValueError(f"a row has {len(odd)} cells, expected those of {', '.join(head)}: {line(odd)}")
    return "\n".join([head_of(head, align), *map(line, lines)])


def head_of(head: Sequence[str], align: str = "") -> str:
    """The two lines above a table's rows, for rows that are printed as they come; align: as of `table`."""
    rules = ("---:" if side == "r" else "---" for side in align or "l" * len(head))
    return f"{line(head)}\n|{'|'.join(rules)}|"


def line(cells: Iterable[object]) -> str:
    """A row of a table. A bar or a line's end inside a cell would begin another one."""
    plain = (" ".join(str(cell).splitlines()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(plain)} |"
