"""The fairchem-core versions whose internals this package reaches into: stated here alone."""

from importlib.metadata import PackageNotFoundError, version

TESTED = {1: "1.10", 2: "2.24"}  # by the first number; their later fixes (1.10.x) count as tested


def installed_version() -> str | None:
    """Version of fairchem-core, or None if there is none."""
    try:
        return version("fairchem-core")
    except PackageNotFoundError:
        return None


def require_version(line: int) -> None:
    """Refuse a fairchem-core on which our force fields have not been tested.

    Args:
        line: 1 or 2.

    Raises:
        ImportError: names the version found, the one supported, and what to do.
    """
    found, tested = installed_version(), TESTED[line]
    if found is None or not found.startswith(tested + "."):
        other = 3 - line
        raise ImportError(
            f"fairchem_gdeq.fairchem{line} works with fairchem-core {tested}.x, found "
            f"{found or 'none'}: it puts frozen graphs and edge frames in the place of functions of "
            "that version's models, and with another version forces could be wrong without a word. "
            f"Install fairchem-core=={tested}.0; for fairchem-core {TESTED[other]} there is "
            f"fairchem_gdeq.fairchem{other}."
        )
