"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs build/docs``.

The reference is read from the sources and not imported: the modules for fairchem-core 1.10 and for 2.24
cannot be imported in one environment.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENTRY = re.compile(r"    \w+(, \w+)+: ")  # several names that share a description
with (ROOT / "pyproject.toml").open("rb") as file:
    _project = tomllib.load(file)["project"]

project = _project["name"]
version = release = _project["version"]
author = "the authors of fairchem-gdeq"
project_copyright = author

extensions = [
    "myst_parser",
    "autoapi.extension",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autoapi_dirs = [str(ROOT / "fairchem_gdeq")]
autoapi_root = "api"
autoapi_options = ["members", "undoc-members", "show-inheritance", "show-module-summary"]
autoapi_member_order = "bysource"
autoapi_python_class_content = "both"
autoapi_add_toctree_entry = False
autoapi_keep_files = False
suppress_warnings = [
    "autoapi.python_import_resolution",  # constants that several names unpack are not found
    "ref.python",  # a name that several classes have, such as ``converged``, links to none of them
]

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"{project} {version}"
copybutton_prompt_text = r"^\$ "


def _escaped(line: str) -> str:
    """A line of a docstring, of which only what stands in double backticks is markup."""
    parts = re.split(r"(``.+?``)", line)
    return "".join(
        part if part.startswith("``") else re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
        for part in parts
    )


def _entries(lines: list[str]) -> Iterator[str]:
    """The lines, with ``x,y:`` for an entry ``x, y:``, which Sphinx would take for a type and a name."""
    inside = False
    for line in lines:
        if line.strip():
            inside = line.startswith(" ") and inside
        yield re.sub(r"(?<=\w), (?=[\w, ]*:)", ",", line) if inside and ENTRY.match(line) else line
        inside = inside or line in ("Args:", "Attributes:")


def prepare(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are text: formulas such as ``|u| > |g| / mu`` would be markup to Sphinx."""
    lines[:] = [_escaped(line) for line in _entries(lines)]


def setup(app: Any) -> None:
    """Prepare docstrings before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", prepare, priority=100)
