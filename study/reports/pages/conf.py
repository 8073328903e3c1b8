"""Sphinx's settings for the site, whose sources :mod:`study.reports.site` writes."""

import re
import sys

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's optional URI grammar: 1.5 s, for nothing here

project = "SRS"
html_title = "Serialized randomized smoothing"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"
autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "model_config, model_post_init"}
autodoc_preserve_defaults = True  # as written: an object's own text may hold its address in memory
html_theme = "furo"
templates_path = ["."]
html_static_path = ["site.css", "sort.js"]
html_css_files = ["site.css"]
html_js_files = ["sort.js"]
html_copy_source = html_show_copyright = html_show_sphinx = html_use_index = html_domain_indices = False
html_theme_options = {"top_of_page_buttons": []}


def _plainly(app, what, name, obj, options, lines):
    """Docstrings are read as text: a star, a bar or a trailing underscore outside of backticks marks nothing."""
    parts = [re.split(r"(`[^`]*`+)", line) for line in lines]
    lines[:] = ["".join(p if i % 2 else re.sub(r"([*|]|(?<=\w)_\b)", r"\\\1", p) for i, p in enumerate(line)) for line in parts]


def setup(app):
    app.connect("autodoc-process-docstring", _plainly)
