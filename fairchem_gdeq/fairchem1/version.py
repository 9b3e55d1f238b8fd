"""The fairchem-core versions this package reaches into."""

from importlib.metadata import PackageNotFoundError, version

SUPPORTED = "1.10"


def installed_version() -> str | None:
    """Version of fairchem-core, or None if there is none."""
    try:
        return version("fairchem-core")
    except PackageNotFoundError:
        return None


def require_version() -> None:
    """Refuse a fairchem-core whose internals are not known here.

    Raises:
        ImportError: names the version found and those supported.
    """
    found = installed_version()
    if found is None or not found.startswith(SUPPORTED + "."):
        raise ImportError(
            f"fairchem_gdeq.fairchem1 works with fairchem-core {SUPPORTED}.x, found "
            f"{found or 'none'}: it sets neighbour graphs and edge frames on instances of that "
            f"version's models. Install fairchem-core=={SUPPORTED}.0; for fairchem-core 2 there is "
            "fairchem_gdeq.fairchem2."
        )
