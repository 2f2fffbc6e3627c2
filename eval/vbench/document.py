"""What the HTML pages share: the head and its style, and pictures inside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1d1d1f; --page: #fff; --dim: #53535a; --line: #d4d4d8; --link: #0b57a4;
  --box: #f4f4f6; --warn: #fff4dc; --edge: #b4590a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6ea; --page: #1a1a1d; --dim: #b0b0b8; --line: #44444c;
  --link: #8ab8ff; --box: #26262b; --warn: #3a2c12; --edge: #e09a4a; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h4 { margin-bottom: 0; } h4 + p { margin: .2rem 0 .6rem; }
a { color: var(--link); }
.totals { display: flex; flex-wrap: wrap; gap: .3rem 2rem; padding: 0; margin: 1rem 0; list-style: none; }
.totals b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
figcaption, .note { color: var(--dim); font-size: .87rem; }
.partial { background: var(--warn); border: 1px solid var(--edge); border-left-width: 5px; padding: .6rem 1rem; }
.partial ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll { max-width: 100%; overflow-x: auto; margin: .5rem 0 1rem; }
p.note { margin: .5rem 0; }
table { border-collapse: collapse; overflow-wrap: normal; width: max-content; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; }
thead th { vertical-align: bottom; max-width: 8rem; white-space: normal; }
thead bdi { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 4; overflow: hidden; }
tbody th { font-weight: 500; max-width: min(14rem, 34vw); }
tr > :first-child { position: sticky; left: 0; background: var(--page); }
.figure { text-align: right; font-variant-numeric: tabular-nums; } td.figure { white-space: nowrap; }
td:not(.figure) { max-width: 24rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) minmax(0, 1fr); gap: .15rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; }
pre { background: var(--box); padding: .7rem; max-width: 100%; overflow-x: auto; white-space: pre-wrap; }
img, video { max-width: 100%; height: auto; } figure { margin: 0 0 1.2rem; } figure img { display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 1rem; }
@media print {
  :root { color-scheme: light; --text: #000; --page: #fff; --dim: #333; --line: #999; --link: #000; --box: #fff;
    --warn: #fff; --edge: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } table { width: 100%; font-size: 7.5pt; } th, td { padding: .2rem .4rem .2rem 0; }
  td.figure { white-space: normal; }
  tr > :first-child { position: static; } thead { display: table-header-group; }
  tr, figure, .partial, .totals { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; } pre { border: 1px solid var(--line); overflow: visible; }
  details { display: none; } a[href]::after { content: " (" attr(href) ")"; }
}
"""


def write_page(title: str, parts: Iterable[str]) -> str:
    """title: as text. parts: as HTML."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def embed(data: bytes, kind: str, said: str) -> str:
    """A picture, and what is to be seen in it."""
    return f'<img alt="{escape(said)}" src="{to_url(data, kind)}">'


def to_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def list_items(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def list_facts(facts: Iterable[tuple[str, str]]) -> str:
    """facts: (what, value)."""
    return f"<dl>{''.join(f'<dt>{escape(what)}</dt><dd>{escape(value)}</dd>' for what, value in facts)}</dl>"


def isolate(text: str) -> str:
    """A prompt or a name in its own direction of writing."""
    return f'<bdi dir="auto">{escape(text)}</bdi>'
