"""Each route declares the scope that its callers need, or that it is open to everyone."""

from collections.abc import Callable
from typing import Any, TypeVar

from services.errors import Forbidden
from services.users.models import Caller
from services.users.rights import Scope

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_SCOPE = "needed_scope"


def needs(scope: Scope) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler: it is for callers with this scope."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _SCOPE, scope)
        return handler

    return mark


def public(handler: HandlerT) -> HandlerT:
    """Mark a handler: it is for everyone, signed in or not."""
    setattr(handler, _SCOPE, None)
    return handler


def scope_of(handler: Callable[..., Any]) -> Scope | None:
    """The scope that callers need; None if everyone may call. Raises `LookupError` if the handler declares neither."""
    try:
        scope: Scope | None = getattr(handler, _SCOPE)
    except AttributeError as error:
        raise LookupError(f"{handler.__qualname__} must declare a scope with @needs, or be @public") from error
    return scope


def check_scope(caller: Caller, handler: Callable[..., Any]) -> None:
    """Raises `Forbidden` unless the caller has the scope that the handler needs."""
    scope: Scope | None = getattr(handler, _SCOPE, None)
    if scope is not None and not caller.may(scope):
        raise Forbidden(f"this needs the scope {scope.value}")
