"""Headers that protect what a reply contains: on every reply, unless its route has set its own."""

from collections.abc import Iterable
from typing import Any

PROTECTIVE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Almost every reply is personal data or a token.
    "cache-control": "no-store",
    # A browser that shows the reply as a page loads nothing and runs nothing.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""For replies that no route has made."""


class Protection:
    """The headers for all replies of an application.

    `hsts` is for how many seconds browsers use nothing but HTTPS from then on (RFC 6797); 0 leaves the header out.
    """

    def __init__(self, hsts: int = 0) -> None:
        every = PROTECTIVE | ({"strict-transport-security": f"max-age={hsts}"} if hsts else {})
        self._every = {name.encode(): (name.encode(), value.encode()) for name, value in every.items()}

    def missing(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What is added to a reply that has the `given` headers."""
        added = self._every.copy()
        for name, _ in given:
            added.pop(name, None)
        return [*added.values()]


def located(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of replies that say in `Location` where the thing is that was made."""
    return {status: {"headers": {"Location": {"$ref": "#/components/headers/Location"}}} for status in statuses}
