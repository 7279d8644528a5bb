"""Where a page of a list ended: a text that only the same list, with the same sort and the same filters, takes back."""

import base64
import binascii
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json, to_json

from services.errors import BadQuery

LONGEST = 2200
"""The most characters that a cursor has. The longest text by which a list is sorted has 254 characters, each of which
takes up to six bytes here."""

_CHECK = 8
"""Bytes at the beginning that depend on the list and on the rest."""


def encode(scope: Sequence[str], place: Sequence[Any]) -> str:
    """The cursor of a place in the list that `scope` describes: its name, its sort, its filters.

    The place is stored by its values, and not by a row: it stays where it is if the row changes or vanishes.
    """
    body = to_json(place)
    return base64.urlsafe_b64encode(_check(scope, body) + body).decode().rstrip("=")


def decode(scope: Sequence[str], cursor: str) -> Any:
    """The place, as JSON gives it back. Raises `BadQuery` if the cursor is damaged or belongs to another list.

    The check has no secret: a cursor that a client makes up reads only what the list shows them anyway. Its values
    must be validated like any others.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        check, body = raw[:_CHECK], raw[_CHECK:]
        if check != _check(scope, body):
            raise not_issued()
        return from_json(body)
    except (binascii.Error, ValueError) as error:
        raise not_issued() from error


def not_issued() -> BadQuery:
    return BadQuery(
        "the cursor was not issued by this list with this sort and these filters; omit it to start from the first page"
    )


def _check(scope: Sequence[str], body: bytes) -> bytes:
    # A list in JSON, so that no two scopes read the same.
    return blake2b(to_json(list(scope)) + b"\n" + body, digest_size=_CHECK).digest()
