"""The site: ``make docs``. No internet is needed to build or to read it."""

from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tests read this file too
    from sphinx.application import Sphinx

project = "sb3_trustregion"
author = "sb3_trustregion contributors"
project_copyright = "2026, sb3_trustregion contributors"
release = version = version_of("sb3_trustregion")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # SB3's docstrings say what arguments mean; the signature shows their types
autodoc_member_order = "bysource"
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"sb3_trustregion {release}"
html_copy_source = False

FAULTS = "| Fault | Stock TRPO | Stock PPO | Ours | Shown by |"


def in_two_columns(text: str) -> str:
    """
    Five columns are for tests to read; a reader gets two, and the names of the tests in footnotes.

    :param text: of ``faults.md``
    :return: the same with narrow tables
    """
    lines, footnotes, inside = [], [], False
    for line in text.splitlines():
        starts = line == FAULTS
        inside = line.startswith("|") and (inside or starts)
        if not inside:
            lines.append(line)
        elif starts:
            lines += ["| Fault | What happens |", "|---|---|"]
        elif set(line) - set("|- "):
            fault, trpo, ppo, ours, shown_by = (cell.strip() for cell in line.strip("|").split("|"))
            footnotes.append(f"[^f{len(footnotes) + 1}]: {shown_by}")
            same = ppo in ("the same", trpo)
            stock = f"Stock TRPO and PPO: {trpo}." if same else f"Stock TRPO: {trpo}. Stock PPO: {ppo}."
            lines.append(f"| {fault} [^f{len(footnotes)}] | **Ours:** {ours}.<br>{stock} |")
    return "\n".join([*lines, "", *footnotes, ""])


def _narrow(app: "Sphinx", page: str, source: list[str]) -> None:
    if page == "faults":
        source[0] = in_two_columns(source[0])


def setup(app: "Sphinx") -> None:
    """
    Add what is ours to Sphinx.

    :param app: Sphinx
    """
    app.connect("source-read", _narrow)
