"""Making a page from a template, and writing it without putting a run's results at risk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.utils import PlotlyJSONEncoder

from fairchem_gdeq.training.in_use import whole_file

HERE = "fairchem_gdeq.page"
NAME = "report.html"
# What a template may ask for with ``bundled(...)``; scripts/README.md says where they come from.
SCRIPTS = {"plotly": "plotly-basic-4.1.1.min.js", "3dmol": "3Dmol-2.5.5.min.js"}


def name_of(split: str) -> str:
    """Of the page of a split, where a folder has those of several."""
    return f"report_{split}.html"


def write_numbers(folder: Path, name: str, stored: Mapping[str, Any]) -> Path:
    """Write ``folder/name``, the JSON that a page is made from; the folder is made. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(stored, indent=1) + "\n")
    return path


def write_page(folder: Path, package: str, template: str, name: str = NAME, **values: Any) -> Path:
    """Render a template into ``folder/name``; the file appears whole or not at all.

    A template extends ``base.html``, which says what it may fill in, and imports the parts that pages
    share from ``macros.html``. What it is given is text, never HTML: names of structures may be anything.

    Args:
        folder: of the page; it is made.
        package: that holds the template, such as ``fairchem_gdeq.diagnose``.
        template: its file there.
        name: of the page.
        values: what the template names; one that is missing is an error.

    Returns:
        The path of the page.
    """
    pages = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(HERE, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Figures and arrays as they are; NaN, which is no JSON, becomes null.
    pages.policies["json.dumps_function"] = partial(json.dumps, cls=PlotlyJSONEncoder)
    pages.policies["json.dumps_kwargs"] = {}  # keys in their order
    pages.globals |= {"bundled": bundled, "version": version("fairchem-gdeq")}
    text = pages.get_template(template).render(**values)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def bundled(name: str) -> Markup:
    """A script of ``SCRIPTS``, or one of our own by its file, as an element to put into a page."""
    file = SCRIPTS.get(name)
    place = resources.files(HERE) / "scripts" / file if file else resources.files(HERE) / name
    return Markup("<script>\n{}\n</script>").format(Markup(place.read_text(encoding="utf-8")))


def attempt(write: Callable[[], Path]) -> None:
    """Write a page and print where it is.

    What goes wrong is logged and not raised: a page is written when the results are on the disk, and
    what it shows can be made again from them.
    """
    try:
        print(f"report: {write()}")
    except Exception as error:
        logging.warning(f"the page could not be written: {type(error).__name__}: {error}")
