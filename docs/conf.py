"""How the documentation is built: ``sphinx-build -W --keep-going -b html docs build/docs``.

The reference is read from the sources and not imported: the modules for fairchem-core 1.10 and for 2.24
cannot be imported in one environment.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
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


def _escape(line: str) -> str:
    """A line of a docstring, of which only what stands in double backticks is markup."""
    parts = re.split(r"(``.+?``)", line)
    return "".join(
        part if part.startswith("``") else re.sub(r"[|*]|(?<=\w)_(?!\w)", r"\\\g<0>", part)
        for part in parts
    )


def escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Formulas such as ``|u| > |g| / mu`` are text in our docstrings and would be markup here."""
    lines[:] = [_escape(line) for line in lines]


def setup(app: Any) -> None:
    """Escape before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", escape, priority=100)
