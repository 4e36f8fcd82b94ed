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
blockquote { margin: 8px 0; padding: 2px 14px; background: #fff6e0; border-left: 4px solid #de8f05; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; white-space: nowrap; border-bottom: 1px solid #e8eaee; }
img { max-width: 100%; }
pre { white-space: pre-wrap; padding: 8px 12px; background: #f4f5f7; font-size: 12.5px; }
"""


class Page:
    """Takes the parts of a report in order; its folder gets ``report.html``, ``summary.md`` and the pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: list[str] = []

    def add(self, text: str, prefix: str = "") -> None:
        """Add a text, plain but for backticks; ``prefix`` is what it is in Markdown: a heading, a note."""
        self._parts.append(prefix + html.escape(text, quote=False))

    def code(self, text: str) -> None:
        """Add lines that are shown as they are."""
        self._parts.append(f"```\n{text.rstrip()}\n```")

    def table(self, table: pd.DataFrame) -> None:
        """Add a table of texts, whose rows are named by its index."""
        rows = [["", *table.columns], ["---", *["---:"] * len(table.columns)]]
        rows += [[str(name), *cells] for name, cells in zip(table.index, table.to_numpy().tolist(), strict=True)]
        self.add("\n".join(f"| {' | '.join(row)} |" for row in rows))

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """Save and show a figure, which is closed, by the name of its file without suffix."""
        # Without software or date, so that the same gives the same.
        figure.savefig(self.folder / f"{name}.png", dpi=90, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        self.add(f"{caption}\n\n![{caption}]({name}.png)")

    @contextlib.contextmanager
    def fold(self, title: str) -> Iterator[None]:
        """Fold away what is added within: at first the title alone is shown."""
        self._parts.append(f'<details markdown="1"><summary>{html.escape(title)}</summary>')
        yield
        self._parts.append("</details>")

    def write(self) -> Path:
        """Write both files, and return the path of the HTML page."""
        text = "\n\n".join(self._parts) + "\n"
        (self.folder / "summary.md").write_text(text, "utf-8")
        converter = markdown.Markdown(extensions=["tables", "fenced_code", "md_in_html", "toc"])
        body = re.sub(r'src="([^":]+\.png)"', self._inline, converter.convert(text))
        head = f'<meta charset="utf-8"><title>{self._parts[0].lstrip("# ")}</title><style>{STYLE}</style>'
        contents = getattr(converter, "toc", "")
        page = self.folder / "report.html"
        document = f'<html lang="en"><head>{head}</head>\n<body><main>\n{contents}\n{body}\n</main></body></html>\n'
        page.write_text(f"<!DOCTYPE html>\n{document}", "utf-8")
        return page

    def _inline(self, match: re.Match[str]) -> str:
        data = base64.b64encode((self.folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'
