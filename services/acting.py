"""Who acts where no request says so: the job or the command for which code runs.

An actor is recorded as `user:12`, `key:<uuid>`, `job:<name>` or `command:<name>`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LONGEST_ACTOR = 120
"""Characters of an actor, including the longest names of event types and consumers."""

_ACTOR: ContextVar[str | None] = ContextVar("actor", default=None)


@contextmanager
def acting_as(actor: str) -> Iterator[None]:
    """While the block runs, units of work that are opened in it record this actor, unless they are given another."""
    before = _ACTOR.set(actor)
    try:
        yield
    finally:
        _ACTOR.reset(before)


def current_actor() -> str | None:
    """The actor of the innermost `acting_as`."""
    return _ACTOR.get()
