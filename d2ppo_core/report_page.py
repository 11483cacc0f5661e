"""The page of a report: its look, and the few pieces of HTML it is made of. Every text passes through `esc`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --muted: #5b6470; --grid: #dfe3e8; --soft: #f6f7f9;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00; --c5: #56b4e9;
  --good: #00704f; --bad: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e4e7eb; --muted: #9aa4af; --grid: #333a42;
  --soft: #1d2126; --c0: #4ba8e0; --c1: #f58a43; --c2: #2fc79b; --c3: #e3a3c6; --c4: #f0b83c; --c5: #8fd0f5;
  --good: #4fd0a5; --bad: #f2a06a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .8rem; padding-top: 1.2rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.muted, figcaption, summary { color: var(--muted); font-size: .9rem; }
.lead { font-size: 1.1rem; }
figure { margin: 1.2rem 0; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.plot { overflow-x: auto; }
svg { display: block; width: 100%; height: auto; min-width: 620px; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { color: var(--muted); font-weight: 600; }
td code { overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
code, pre { font: .84rem/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 6px; padding: .8rem 1rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
.film { margin: 1.4rem 0; }
.film img { display: block; width: 100%; border: 1px solid var(--grid); border-radius: 6px; }
.film video { display: block; width: 320px; max-width: 100%; margin-top: .5rem; border-radius: 6px; }
.film figcaption { margin: 0 0 .35rem; }
.success { color: var(--good); font-weight: 600; } .failure { color: var(--bad); font-weight: 600; }
"""
# No address outside the page can be reached even if something slipped through the escaping.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
)


class Html(str):
    """Text that is HTML already; `esc` leaves it alone."""


def esc(value: Any) -> Html:
    """Any value as HTML text: escaped, and without control characters and lone surrogates."""
    if isinstance(value, Html):
        return value
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))
    return Html(html.escape(text))


def element(tag: str, content: Any, css: str = "") -> Html:
    """<tag class=css>content</tag>"""
    opening = f'<{tag} class="{css}">' if css else f"<{tag}>"
    return Html(f"{opening}{esc(content)}</{tag}>")


def join(parts: Iterable[Any]) -> Html:
    """Pieces one under the other."""
    return Html("\n".join(esc(part) for part in parts if part))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> Html:
    """A table; the columns in `numbers` are aligned to the right."""

    def cells(tag: str, row: Sequence[Any]) -> str:
        return "".join(element(tag, cell, "number" if n in numbers else "") for n, cell in enumerate(row))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    top = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return Html(f'<div class="wide"><table>{top}<tbody>\n{body}\n</tbody></table></div>')


def figure(drawing: str, caption: str) -> Html:
    """A figure drawn by `report_figures.svg` with its one sentence."""
    marked = drawing.replace("<svg ", f'<svg role="img" aria-label="{esc(caption)}" ', 1)
    return Html(f'<figure><div class="plot">{marked}</div>{element("figcaption", caption)}</figure>')


def details(title: str, content: Any) -> Html:
    """Something folded away."""
    return Html(f"<details>{element('summary', title)}{esc(content)}</details>")


def section(title: str, content: Html) -> Html:
    """A chapter of the page, or nothing where it is empty."""
    return Html(f"<section>{element('h2', title)}\n{content}</section>") if content else Html("")


def page(title: str, content: Html) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )
