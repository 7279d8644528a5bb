"""Tells streams that the server stops: it waits for replies to end, and theirs would not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_told: list[Callable[[], None]] = []


@contextmanager
def told_to_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call this once the server of this process begins to stop, as long as the block runs."""
    _told.append(callback)
    try:
        yield
    finally:
        _told.remove(callback)


def begin() -> None:
    """The server stops."""
    for callback in _told:
        callback()
