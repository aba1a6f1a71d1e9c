"""From a reference to the repository it is in."""

from pathlib import Path

from modelpack.oci.settings import ConnectSettings
from modelpack.spec.reference import Reference
from modelpack.spec.registry import Repository


def open_repository(reference: Reference, settings: ConnectSettings) -> Repository:
    """Open a repository; nothing is asked of the other side yet."""
    if reference.layout:
        from modelpack.oci.layout import LayoutRepository

        return LayoutRepository(Path(reference.layout))
    from modelpack.oci.remote import RemoteRepository

    return RemoteRepository(reference.registry, reference.repository, settings)


__all__ = ["ConnectSettings", "open_repository"]
