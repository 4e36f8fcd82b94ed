"""A report as Markdown with its pictures beside it, and the same as one self-contained HTML page."""

import base64
import contextlib
import html
import re
from collections.abc import Iterator
from pathlib import Path

import markdown
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

STYLE = """
body { margin: 0; background: #f4f5f7; color: #1d2330; font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 12px 28px 60px; background: #fff; overflow-x: auto; }
h2 { margin-top: 42px; padding-top: 12px; border-top: 2px solid #e3e6eb; }
p, li { max-width: 85ch; }
blockquote { margin: 8px 0; padding: 2px 14px; background: #fff6e0; border-left: 4px solid #de8f05; }
table { border-collapse: collapse; margin: 10px 0 18px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; white-space: nowrap; border-bottom: 1px solid #e8eaee; }
img { max-width: 100%; display: block; }
summary { cursor: pointer; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 8px 12px; background: #f4f5f7; font-size: 12.5px; }
"""


class Page:
    """
    Takes the parts of a report in order.

    :param folder: gets ``report.html``, ``summary.md`` and the pictures
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        """
        :param text: plain
        :param level: 1 for the page, 2 for a section, 3 within it
        """
        self._parts.append(f"{'#' * level} {_plain(text)}")

    def text(self, text: str, is_note: bool = False) -> None:
        """
        :param text: a paragraph; words between backticks are code
        :param is_note: whether it is set off
        """
        self._parts.append(f"{'> ' if is_note else ''}{_plain(text)}")

    def code(self, text: str) -> None:
        """
        :param text: lines as they are
        """
        self._parts.append(f"```\n{text.rstrip()}\n```")

    def table(self, table: pd.DataFrame, n_names: int = 1) -> None:
        """
        :param table: of texts
        :param n_names: how many columns name the rows
        """
        rule = ["---" if column < n_names else "---:" for column in range(len(table.columns))]
        rows = [list(table.columns), rule, *table.to_numpy().tolist()]
        self._parts.append("\n".join(f"| {' | '.join(map(_plain, row))} |" for row in rows))

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """
        :param name: of its file, without suffix
        :param figure: drawn; it is closed
        :param caption: what is seen
        """
        # Without software or date, so that the same gives the same.
        figure.savefig(self.folder / f"{name}.png", dpi=90, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        self._parts.append(f"{_plain(caption)}\n\n![{_plain(caption)}]({name}.png)")

    @contextlib.contextmanager
    def fold(self, title: str) -> Iterator[None]:
        """
        What is added within is shown when asked for.

        :param title: what is shown at first
        """
        self._parts.append(f'<details markdown="1"><summary>{_plain(title)}</summary>')
        yield
        self._parts.append("</details>")

    def write(self) -> Path:
        """:return: the page in HTML"""
        text = "\n\n".join(self._parts) + "\n"
        (self.folder / "summary.md").write_text(text, "utf-8")
        converter = markdown.Markdown(extensions=["tables", "fenced_code", "md_in_html", "toc"])
        body = re.sub(r'src="([^":]+\.png)"', self._inline, converter.convert(text))
        title = self._parts[0].lstrip("# ")
        head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        page = self.folder / "report.html"
        contents = getattr(converter, "toc", "")
        document = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{contents}\n{body}\n'
        page.write_text(f"{document}</main></body></html>\n", "utf-8")
        return page

    def _inline(self, match: re.Match[str]) -> str:
        data = base64.b64encode((self.folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'


def _plain(text: str) -> str:
    return html.escape(text, quote=False)
