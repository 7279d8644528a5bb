"""What is known about who makes a request, for the audit log."""

from fastapi import Request

from services.acting import Acting, Action
from services.addresses import plain
from services.errors import DomainError, SignInRefused

REFUSALS = {401: Action.unauthenticated, 403: Action.forbidden, 429: Action.limited}
"""Replies that are security events, by status."""


def client_address(request: Request) -> str | None:
    """Where the request comes from, as `plain` writes it.

    Behind a trusted proxy (`FORWARDED_ALLOW_IPS`), the server has set the client.
    """
    return plain(request.client.host) if request.client else None


def acting_in(request: Request) -> Acting:
    """Who acts in this request: only the client's address is known before its token is read."""
    acting: Acting | None = getattr(request.state, "acting", None)
    if acting is None:
        acting = request.state.acting = Acting(address=request.client.host if request.client else None)
    return acting


def note_refusal(request: Request, status: int, code: str) -> None:
    """Remember why a request is refused, for `services/api/refusals.py`."""
    if status in REFUSALS:
        request.state.refused_with = code


def note_sign_in(request: Request, error: DomainError) -> None:
    """Remember whose sign-in is refused."""
    if isinstance(error, SignInRefused):
        request.state.refused_user = error.user_id
