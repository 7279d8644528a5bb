"""Classes of routes: the requests of each class are limited together (`services/api/rate_limits.py`)."""

from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any, TypeVar

from services.api.rights import scope_of

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_CLASS = "rate_class"
_READING = frozenset({"GET", "HEAD"})


class RateClass(StrEnum):
    """What requests cost, roughly: each class has its own limit."""

    sign_in = "sign_in"
    """Requests that show who sends them, or try to: counted by the address of the client."""
    read = "read"
    write = "write"
    search = "search"
    """Lists with a search, and summaries."""
    export = "export"
    """Exports and reports: what reads any number of rows."""
    batch = "batch"
    """Requests with many transfers or products."""
    internal = "internal"
    """Probes, metrics and the pages that describe the API. They have no limit."""


LIMITED = tuple(kind for kind in RateClass if kind is not RateClass.internal)
"""The classes that have a limit: the setting `rate_limit_` with their name."""


def rate_class(kind: RateClass) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler: its requests are of this class. Without a mark, they are `read` or `write`, by their method."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _CLASS, kind)
        return handler

    return mark


def class_of(handler: Callable[..., Any], methods: Collection[str]) -> RateClass:
    """The class of the handler's route.

    Raises `LookupError` if everyone may call it, it does more than read, and it does not declare its class: such routes
    usually check a secret, or send a mail, and the limit for writes would be too high.
    """
    declared: RateClass | None = getattr(handler, _CLASS, None)
    if declared is not None:
        return declared
    if _READING.issuperset(methods):
        return RateClass.read
    if scope_of(handler) is None:
        raise LookupError(f"{handler.__qualname__} is @public and not only read: it must declare its @rate_class")
    return RateClass.write
