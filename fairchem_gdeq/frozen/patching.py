"""What takes the place of a function of fairchem for one forward pass, and that fairchem called it.

A function that fairchem no longer looks up where we replace it would be replaced in vain: the model
would run on, with other forces than those that the frozen graph is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairchem_gdeq.versions import installed_version


class NotCalled(RuntimeError):
    """fairchem did not call what we put in the place of one of its functions."""


@contextmanager
def called(
    function: Callable[..., Any], name: str, otherwise: str, times: int = 1
) -> Iterator[Callable[..., Any]]:
    """``function`` as it is to be put in the place of ``name``; it must be called inside.

    Args:
        function: the stand-in.
        name: what it stands in for, for the message.
        otherwise: what happens where fairchem does without it, for the message.
        times: the least number of calls.

    Raises:
        NotCalled: it was called less often, and nothing else went wrong.
    """
    count = 0

    def standin(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return function(*args, **kwargs)

    yield standin
    if count < times:
        raise NotCalled(
            f"fairchem-core {installed_version()} called {name} {count} times in a forward pass, "
            f"expected at least {times}: fairchem_gdeq puts its own function there, and without it "
            f"{otherwise}. The forces of this pass are not used. Install the fairchem-core that "
            "fairchem_gdeq.versions names as tested, and if it is that one, report this."
        )


class Switch:
    """A truth value that says when it is looked at: ``read`` gives the value."""

    def __init__(self, read: Callable[[], bool]) -> None:
        self.read = read

    def __bool__(self) -> bool:
        return self.read()
