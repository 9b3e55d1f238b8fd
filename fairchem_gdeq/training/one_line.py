"""Errors of ours as the sentence that they are, where Hydra and torch would bury it in their own.

fairchem builds everything by ``hydra.utils.instantiate``. What is wrong with a base, a data set or frames
is found there, and the last line of the traceback would name a key of the config, and not what is wrong.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

from hydra.errors import InstantiationException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

SHOW = "GDEQ_TRACEBACK"  # set to anything: the traceback is shown as well
HERE = str(Path(__file__).parents[1])
_INSIDE = re.compile(r"^\s*(\w+)\((.+)\)$\n\s*full_key: ", re.MULTILINE)


def sentence(error: BaseException) -> str | None:
    """What is wrong, in our words; None where the error is not one of ours.

    Args:
        error: of this process, or what torch makes of that of a rank.
    """
    if isinstance(error, ChildFailedError):
        return _of_a_rank(error)
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and frames[-1].filename.startswith(HERE)
    return str(error) if ours and isinstance(error, ValueError | OSError | TypeError) else None


def _of_a_rank(error: ChildFailedError) -> str | None:
    """The sentence inside what torch keeps of the first rank that failed: a text alone."""
    _, failure = error.get_first_failure()
    message = failure.message  # a text, or what torch has found in the rank's file of its error
    found = _INSIDE.search(str(message.get("message") if isinstance(message, dict) else message))
    if found is None:
        return None
    try:
        return str(ast.literal_eval(found[2]))
    except (SyntaxError, ValueError):
        return found[2]


def end_in_one_line() -> None:
    """From now on, an error of ours that ends this process is one sentence on stderr."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = sentence(error)
        if said is None or os.environ.get(SHOW):
            before(kind, error, trace)
        if said is not None:
            print(f"fairchem: {said}", file=sys.stderr)

    sys.excepthook = hook
