"""What goes out about the audit log."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from services.acting import Action
from services.audit.log.models import ActBase
from services.fields import Schema


class ActPublic(ActBase, Schema):
    """An entry of the audit log: who did what to which object, and why."""

    id: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries to find. `user` is an e-mail address: entries of, and about, the user or their account.

    `since` is included and `until` is not; both are in UTC if they have no time zone.
    """

    user: str | None = None
    actor: str | None = None
    action: Action | None = None
    object: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The last place in the chain, and its hash."""

    position: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.position}:{self.hash.hex()}"

    @classmethod
    def parse(cls, shown: str) -> Self:
        """Read what `str` has shown. Raises `ValueError`."""
        position, _, digest = shown.partition(":")
        head = cls(int(position), bytes.fromhex(digest))
        if head.position < 1 or len(head.hash) != 32:
            raise ValueError("a head has a position of at least 1 and 64 hexadecimal digits")
        return head
