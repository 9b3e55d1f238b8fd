"""What takes the place of a function or setting of fairchem for one forward pass.

It is put on one instance or module, leaves no trace, and fairchem must call what is a function.

A function that fairchem no longer looks up where we replace it would be replaced in vain: the model
would run on, with other forces than those that the frozen graph is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

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


@contextmanager
def installed(owner: object, name: str, value: Any) -> Iterator[None]:
    """``owner.name`` is ``value`` inside, also where it had none.

    ``owner`` is an instance or a module; the class and other instances are not touched.
    """
    own, before = name in vars(owner), vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if own:
            vars(owner)[name] = before
        else:
            vars(owner).pop(name, None)


def swapped(owner: object, name: str, value: Any) -> AbstractContextManager[None]:
    """``installed`` in the place of what must be there.

    Raises:
        AttributeError: ``owner`` has nothing of that name.
    """
    getattr(owner, name)
    return installed(owner, name, value)


@contextmanager
def replaced(
    owner: object, name: str, function: Callable[..., Any], otherwise: str, times: int = 1
) -> Iterator[None]:
    """Another function in the place of an instance's or a module's inside, which must be ``called``.

    Raises:
        AttributeError, NotCalled: as ``swapped`` and ``called``.
    """
    place = f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
    with called(function, place, otherwise, times) as standin, swapped(owner, name, standin):
        yield


@contextmanager
def restored(*owners: object) -> Iterator[None]:
    """Attributes and submodules that a forward pass leaves behind are taken back.

    fairchem 1 keeps the Wigner matrices of the last call on its modules. With a derivative they
    would hold the whole graph, and the model could neither be copied nor pickled.
    """
    held = [vars(owner) for owner in owners]
    held += [owner._modules for owner in owners if isinstance(owner, nn.Module)]
    before = [values.copy() for values in held]
    try:
        yield
    finally:
        for values, old in zip(held, before, strict=True):
            values.clear()
            values.update(old)
