"""What a group is going to do with each of its requests."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from services.api.turns import Alone, Intent, Outcome
from services.sql import detail_of

_MOST_TRIES = 3
"""In how many groups a request may meet a locked row before it goes alone, and waits for the lock."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What becomes of the requests of a group if it is committed."""

    replies: dict[Intent[Any], Outcome]
    kept: list[Intent[Any]]
    """Those whose replies are stored with the group."""
    again: list[Intent[Any]]
    made: dict[Intent[Any], UUID]
    """The ids of what the requests have made."""

    def named_in(self, error: DBAPIError) -> list[Intent[Any]]:
        """The requests whose rows the error names. One that it does not name may have caused it as well."""
        detail = detail_of(error)
        return [intent for intent, made in self.made.items() if str(made) in detail]

    def put_off(self, intent: Intent[Any]) -> None:
        """Try the request again in the next group or, if it has met locks before, alone, where it waits for them."""
        intent.tries += 1
        if intent.tries < _MOST_TRIES:
            self.again.append(intent)
        else:
            self.replies[intent] = Alone()
