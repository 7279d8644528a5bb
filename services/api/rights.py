"""Each route declares the scope that its callers need, or that it is open to everyone."""

from collections.abc import Callable
from typing import Any, TypeVar

from services.errors import Forbidden, SecondFactorMissing
from services.settings import Settings
from services.users.repository import SignedIn
from services.users.rights import PROFILE, SELLING, Scope

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


def check_rights(caller: SignedIn, handler: Callable[..., Any], settings: Settings) -> None:
    """Raises `Forbidden` unless the caller has the scope that the handler needs, and `LookupError` as `scope_of`.

    Raises `SecondFactorMissing` if the caller has to set up a second factor first.
    """
    scope = scope_of(handler)
    if scope is None:
        return
    if caller.limited and scope not in PROFILE:
        raise SecondFactorMissing(
            "your role needs a second factor; set one up with POST /v1/users/me/totp, then send this again"
        )
    if not caller.may(scope):
        raise Forbidden(f"this needs the scope {scope.value}, which you do not have", scope=scope.value)
    if scope is Scope.catalog_write and not settings.customers_may_sell and caller.role not in SELLING:
        raise Forbidden("only sellers and operators may sell here; ask an admin for the role seller", scope=scope.value)
