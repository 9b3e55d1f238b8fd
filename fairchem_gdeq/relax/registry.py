"""Names for the parts that a configuration chooses: solvers, adjoints, losses and signals."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


def at_path(path: str, kind: str) -> Any:
    """What ``package.module.NAME`` is; ``kind`` is what messages call it.

    Raises:
        ValueError: there is nothing of that path.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (
        ImportError,
        AttributeError,
        ValueError,
    ) as error:  # the latter for a name without module
        raise ValueError(f"{kind} {path!r}: nothing is there ({error})") from error


class Registry(Generic[T]):
    """Classes of one kind of part, by name.

    A part from outside this package is named by its path, ``package.module.Class``; or by a name of
    its own, which the decorator ``@SOLVERS.register("name")`` gives it where its module is imported.
    """

    def __init__(self, kind: str) -> None:
        """``kind``: what its parts are called in messages."""
        self.kind = kind
        self._known: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """A decorator that makes a class known by its name.

        Raises:
            ValueError: another class has the name.
        """

        def known(made: C) -> C:
            if self._known.get(name, made) is not made:
                raise ValueError(f"there is a {self.kind} {name!r} already: choose another name")
            self._known[name] = made
            return made

        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __getitem__(self, name: str) -> Callable[..., T]:
        """The class of that name or path.

        Raises:
            ValueError: there is none.
        """
        if "." in name:
            made: Callable[..., T] = at_path(name, self.kind)
            return made
        if name not in self._known:
            raise ValueError(
                f"unknown {self.kind} {name!r}: choose one of {', '.join(self._known)}"
            )
        return self._known[name]

    def name_of(self, part: T) -> str:
        """The name of a part; that of its class where it is not registered."""
        names = [name for name, made in self._known.items() if made is type(part)]
        return names[0] if names else type(part).__name__

    def make(self, chosen: str | Mapping[str, Any] | T) -> T:
        """The part that a configuration means.

        Args:
            chosen: a name, a mapping with ``name`` and options, or the part itself.

        Raises:
            ValueError: no such name, or options that the part does not have.
        """
        if isinstance(chosen, str):
            chosen = {"name": chosen}
        if not isinstance(chosen, Mapping):
            return chosen
        options = dict(chosen)
        name = options.pop("name", None)
        if name is None:
            raise ValueError(
                f"{self.kind}: expected its name beside {', '.join(map(str, chosen))}; there are "
                + ", ".join(self._known)
            )
        try:
            return self[name](**options)
        except TypeError as error:
            raise ValueError(f"{self.kind} {name!r}: {error}") from error
