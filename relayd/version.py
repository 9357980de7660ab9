"""Which relayd is on disk, as its package says."""

from __future__ import annotations

from importlib import metadata


def installed() -> str:
    """The version; "unknown" where the source is run as it lies."""
    try:
        return metadata.version("relayd")
    except metadata.PackageNotFoundError:
        return "unknown"
