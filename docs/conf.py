"""Sphinx reads this: Markdown pages, the generated parts from `_ext/generated.py`, one theme."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "solid_ext"
author = "the solid_ext authors"
extensions = ["myst_parser", "generated"]
exclude_patterns = ["_build", "_ext", "figures"]
html_theme = "furo"
html_title = "solid_ext"
html_show_copyright = False
html_show_sphinx = False
html_css_files = ["wide.css"]
html_static_path = ["_static"]

# GitHub's anchors, so that a link to a heading works in both places and a docstring's `Source:` can name it.
myst_heading_anchors = 4
nitpicky = True
toc_object_entries = False
smartquotes = False  # a flag keeps its two dashes
