"""Errors of ours as the sentence that they are, where Hydra and torch would bury it in their own.

fairchem builds everything by ``hydra.utils.instantiate``. What is wrong with a base, a data set or frames
is found there, and the last line of the traceback would name a key of the config, and not what is wrong.
"""

from __future__ import annotations

import builtins
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
CHAINED = "The above exception was the direct cause of the following exception:"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+, in [^\n]*\n +(?P<code>[^\n]*)\n')

_UNKNOWN = re.compile(
    r"Error in call to target '(?P<target>(?:[\w.]+\.)?(?P<name>\w+))':\s*TypeError\([\"'](?P=name)"
    r"(?:\.__init__)?\(\) got an unexpected keyword argument '(?P<option>\w+)'"
)
_SAID = re.compile(r"^(?P<name>[\w.<>]+): (?P<text>.*)", re.MULTILINE | re.DOTALL)
PACKAGE = "fairchem_gdeq."
TOLD = (
    ValueError,
    OSError,
    TypeError,
    ImportError,
    RuntimeError,
)  # Python's own, raised with words


def sentence(error: BaseException) -> str | None:
    """What is wrong, in our words; None where no ``raise`` of ours has said it.

    Args:
        error: of this process, or what torch makes of that of a rank.
    """
    if isinstance(error, ChildFailedError):
        return _of_a_rank(error)
    found: BaseException | None = error
    while found is not None:  # Hydra, and fairchem's data sets, raise their own from ours
        frames = traceback.extract_tb(found.__traceback__)
        ours = frames and _ours(frames[-1].filename, frames[-1].line or "")
        if ours and (isinstance(found, TOLD) or type(found).__module__.startswith(PACKAGE)):
            return str(found)
        found = found.__cause__
    return _of_hydra(str(error)) if isinstance(error, InstantiationException) else None


def _of_hydra(text: str) -> str | None:
    """What to say where nothing is at the path of a ``_target_``, or where it has no such option."""
    found = re.search(r"full_key: (\S+)", text)
    key = found[1] if found else "runner"
    if nowhere := re.search(r"Error locating target '([^']+)'", text):
        return (
            f"{key}: expected the path of a class or function in _target_, found {nowhere[1]!r}, where "
            "nothing is. Mend the name, or install its package"
        )
    # Of the target itself: one that it calls in a wrong way is a mistake of its code.
    if unknown := _UNKNOWN.search(text):
        return (
            f"{key}.{unknown['option']}: expected an option of {unknown['target']}, which has none of "
            "that name. Mend the name, or leave it out"
        )
    return None


def _ours(file: str, code: str) -> bool:
    """Whether a line of code says on purpose what is wrong; else it is a mistake of ours."""
    return file.startswith(HERE) and code.lstrip().startswith("raise ")


def _told(name: str) -> bool:
    """Whether an exception says what is wrong, by the name that a traceback gives it.

    That name begins with the module, so that one that is added to this package is known here.
    """
    kind = getattr(builtins, name, None)
    return name.startswith(PACKAGE) or (isinstance(kind, type) and issubclass(kind, TOLD))


def _of_a_rank(error: ChildFailedError) -> str | None:
    """The sentence in what torch keeps of the first rank that failed: the text of its traceback."""
    _, failure = error.get_first_failure()
    if not isinstance(failure.message, dict):
        return None
    stack = str(failure.message.get("extraInfo", {}).get("py_callstack", ""))
    for each in reversed(stack.split(CHAINED)):
        frames = list(_FRAME.finditer(each))
        if frames and _ours(frames[-1]["file"], frames[-1]["code"]):
            said = _SAID.search(each, frames[-1].end())
            return said["text"].strip() if said and _told(said["name"]) else None
    return _of_hydra(stack)


def marked(said: str) -> str:
    """A sentence as the command says it; of several lines, all but the indented ones are marked."""
    return "\n".join(
        line if line.startswith(" ") else f"fairchem: {line}" for line in said.splitlines()
    )


def end_in_one_line() -> None:
    """From now on, an error of ours that ends this process is one sentence on stderr."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = sentence(error)
        stream = sys.stderr
        if said is None or os.environ.get(SHOW):
            before(kind, error, trace)
        else:  # torch collects what a rank says, and would print `[rank0]: ` before it
            stream = sys.__stderr__ or sys.stderr
        if said is not None:
            print(marked(said), file=stream, flush=True)

    sys.excepthook = hook
