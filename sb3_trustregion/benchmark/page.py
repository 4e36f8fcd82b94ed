"""Sections of paragraphs, tables and pictures: as one self-contained HTML page, and as Markdown."""

import base64
import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
N_COLORS = 160
STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #1d2330; font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 12px 28px 60px; background: #fff; }
h1 { font-size: 27px; margin: 22px 0 2px; }
h2 { font-size: 20px; margin: 42px 0 6px; padding-top: 12px; border-top: 2px solid #e3e6eb; }
h3 { font-size: 16px; margin: 26px 0 4px; }
p { margin: 6px 0 10px; max-width: 85ch; }
nav { margin: 14px 0; padding: 10px 16px; background: #f4f5f7; border-radius: 6px; }
nav a { margin-right: 18px; white-space: nowrap; }
a { color: #0b5394; }
.note { padding: 8px 14px; background: #fff6e0; border-left: 4px solid #de8f05; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0 18px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e8eaee; }
th { vertical-align: bottom; font-weight: 600; border-bottom: 1.5px solid #9aa1ad; }
th.name, td.name { text-align: left; }
figure { margin: 10px 0 22px; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { margin: 14px 0 4px; max-width: 85ch; }
details { margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 8px 12px; background: #f4f5f7; font-size: 12.5px; }
code { font-size: 13px; }
"""


@dataclass(frozen=True)
class Text:
    """
    A paragraph. Words between backticks are code.

    :param text: plain
    :param is_note: whether it is set off
    """

    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Code:
    """
    Lines as they are.

    :param text: plain
    """

    text: str


@dataclass(frozen=True)
class Table:
    """
    A table whose first columns name the rows.

    :param columns: heads
    :param rows: cells
    :param strong: row and column of cells that are set in bold
    :param n_names: how many columns are names
    """

    columns: list[str]
    rows: list[list[str]]
    strong: set[tuple[int, int]] = field(default_factory=set)
    n_names: int = 1


@dataclass(frozen=True)
class Picture:
    """
    A figure.

    :param name: of its file, without suffix
    :param figure: drawn
    :param caption: what is seen
    """

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Fold:
    """
    What is shown when asked for.

    :param title: what is shown at first
    :param parts: the rest
    """

    title: str
    parts: "list[Part]"


@dataclass(frozen=True)
class Heading:
    """
    Within a section.

    :param text: plain
    """

    text: str


Part = Text | Code | Table | Picture | Fold | Heading


@dataclass(frozen=True)
class Section:
    """
    A chapter of the report.

    :param title: plain
    :param parts: in order
    """

    title: str
    parts: list[Part]


def write_page(title: str, introduction: list[Part], sections: list[Section], folder: Path) -> Path:
    """
    :param title: of the page
    :param introduction: before the contents
    :param sections: the rest
    :param folder: gets ``report.html``, ``summary.md`` and the pictures
    :return: the page
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw([part for section in sections for part in section.parts])
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    links = "".join(f'<a href="#{_anchor(section.title)}">{html.escape(section.title)}</a>' for section in sections)
    body = [f"<h1>{html.escape(title)}</h1>", *(_html(part, pictures) for part in introduction), f"<nav>{links}</nav>"]
    for section in sections:
        body.append(f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>')
        body += [_html(part, pictures) for part in section.parts]
    head = f"{META}\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>"
    document = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n'
    page = folder / "report.html"
    page.write_text(document + "\n".join(body) + "\n</main>\n</body>\n</html>\n", "utf-8")
    (folder / "summary.md").write_text(_summary(title, introduction, sections), "utf-8")
    return page


def _draw(parts: list[Part]) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    for part in parts:
        if isinstance(part, Picture):
            pictures[part.name] = _png(part.figure)
        elif isinstance(part, Fold):
            pictures |= _draw(part.parts)
    return pictures


def _png(figure: Figure) -> bytes:
    """In a palette of colours, a third of the size; without software or date, so that the same gives the same."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor="white")
    Image.open(drawn).convert("RGB").quantize(N_COLORS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def _html(part: Part, pictures: dict[str, bytes]) -> str:
    if isinstance(part, Text):
        kind = ' class="note"' if part.is_note else ""
        return f"<p{kind}>{_inline(part.text)}</p>"
    if isinstance(part, Code):
        return f"<pre>{html.escape(part.text)}</pre>"
    if isinstance(part, Heading):
        return f"<h3>{html.escape(part.text)}</h3>"
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Picture):
        data = base64.b64encode(pictures[part.name]).decode()
        image = f'<img alt="{html.escape(part.caption)}" src="data:image/png;base64,{data}">'
        return f"<figure><figcaption>{_inline(part.caption)}</figcaption>{image}</figure>"
    inner = "\n".join(_html(inside, pictures) for inside in part.parts)
    return f"<details><summary>{html.escape(part.title)}</summary>\n{inner}\n</details>"


def _table(table: Table) -> str:
    kinds = [' class="name"' if column < table.n_names else "" for column in range(len(table.columns))]
    head = "".join(f"<th{kind}>{_inline(text)}</th>" for kind, text in zip(kinds, table.columns, strict=True))
    rows = []
    for row, cells in enumerate(table.rows):
        marked = (
            f"<b>{_inline(cell)}</b>" if (row, column) in table.strong else _inline(cell)
            for column, cell in enumerate(cells)
        )
        rows.append("".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, marked, strict=True)))
    body = "\n".join(f"<tr>{row}</tr>" for row in [head, *rows])
    return f'<div class="scroll"><table>\n{body}\n</table></div>'


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _summary(title: str, introduction: list[Part], sections: list[Section]) -> str:
    lines = [f"# {title}", *map(_markdown, introduction)]
    for section in sections:
        lines += [f"## {section.title}", *map(_markdown, section.parts)]
    return "\n\n".join(line for line in lines if line) + "\n"


def _markdown(part: Part) -> str:
    if isinstance(part, Text):
        return f"> {part.text}" if part.is_note else part.text
    if isinstance(part, Code):
        return f"```\n{part.text}\n```"
    if isinstance(part, Heading):
        return f"### {part.text}"
    if isinstance(part, Picture):
        return f"![{part.caption}]({part.name}.png)"
    if isinstance(part, Table):
        return _markdown_table(part)
    return ""  # what is folded is on the page


def _markdown_table(table: Table) -> str:
    rows = [
        [f"**{cell}**" if (row, column) in table.strong else cell for column, cell in enumerate(cells)]
        for row, cells in enumerate(table.rows)
    ]
    rule = ["---" if column < table.n_names else "---:" for column in range(len(table.columns))]
    lines = [f"| {' | '.join(cells)} |" for cells in [table.columns, rule, *rows]]
    return "\n".join(lines)
