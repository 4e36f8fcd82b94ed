"""The site: ``make docs``. No internet is needed to build or to read it."""

from importlib.metadata import version as version_of

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
