"""Names of rows (``sid``): what may be one, and extended XYZ files that give them back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict


def wrong_name(key: str, name: object) -> str | None:
    """Sentences on a name that nothing can be called; None for one that can be used.

    A name stands in messages, in files of results and in tables, so it is a line that can be read.

    Args:
        key: where the row has it, such as ``sid``.
        name: whatever is there.
    """
    reason = _wrong(name)
    return reason and f"its name ({key}): {reason}. Name it otherwise, or leave {key} out"


def _wrong(name: object) -> str | None:
    if isinstance(name, int | float | np.integer | np.floating) and not isinstance(name, bool):
        return None if np.isfinite(name) else f"expected text or a number, found {name}"
    if not isinstance(name, str):
        return f"expected text or a number, found a {type(name).__name__}"
    if not name.strip():
        return f"expected text or a number, found {name!r}, which names nothing"
    if not name.isprintable():
        shown = ascii(next(letter for letter in name if not letter.isprintable()))
        return f"expected printable text on one line, found the character {shown} in {name!a}"
    return None


def write_extxyz(path: Path, images: Iterable[Atoms]) -> None:
    """Write structures as extended XYZ, from which ASE reads each ``sid`` as it is.

    ``str`` of what is read is ``str`` of what was given: a whole number is read as one, other text
    as text.
    """
    ase.io.write(path, [_named(atoms) for atoms in images], format="extxyz")


def _named(atoms: Atoms) -> Atoms:
    """The structure with its name as ASE must have it; ``atoms`` stays as it is."""
    if "sid" not in atoms.info:
        return atoms
    out = copy.copy(atoms)  # Atoms.copy would leave the calculator out
    out.info = atoms.info | {"sid": in_extxyz(str(atoms.info["sid"]))}
    return out


def in_extxyz(name: str) -> str:
    """What ``info`` must hold for ASE to write an extended XYZ that is read back as the name.

    ASE turns what looks like numbers or truth values into those, takes backslashes away, and fails
    on a text that only begins like its own notation of JSON. Such names are written in that
    notation; all others are as they were.
    """
    line = {"before": 0, "sid": name, "row": 1}  # a name could take what follows it
    try:
        found = key_val_str_to_dict(key_val_dict_to_str(line))
    except ValueError:  # of JSON that is none
        found = {}
    same = list(found) == list(line) and str(found["sid"]) == name
    if same and name.isprintable():
        return name
    # ASE escapes quotes, but not the backslashes that its reader takes for escapes.
    return "_JSON " + json.dumps(name).replace("\\", "\\\\")
