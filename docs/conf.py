"""The documentation's site: ``sphinx-build -W docs site``, then open ``site/index.html``.

It needs no network, to build or to read.
"""

import sys
from pathlib import Path

import click
from sphinx.application import Sphinx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from edge_sel import __version__  # noqa: E402  (found by the path above)

project = "edge-sel"
copyright = "the edge-sel team"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "generated_tables"]

source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["fieldlist"]
suppress_warnings = ["myst.header"]  # a page may be one table

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 70

html_theme = "furo"
html_title = f"edge-sel {version}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["tables.css"]
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"


def _escape(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """A help text is no markup: ``*.jpg`` begins no emphasis."""
    lines[:] = [line.replace("*.", r"\*.") for line in lines]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for part in ("description", "options", "arguments"):
        app.connect(f"sphinx-click-process-{part}", _escape)
