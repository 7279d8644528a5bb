"""What a group of requests consists of: requests that are carried out one after another in one transaction.

`services/api/groups.py` makes the groups. A domain carries one out: what it has to read and lock goes in one trip, the
requests are decided in memory, in order, and everything is written in one trip.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from services.outbox.events import Trace
from services.users.models import Caller

WantedT = TypeVar("WantedT")


@dataclass(frozen=True, slots=True)
class Asked(Generic[WantedT]):
    """One request of a group: who asks, what they want, and the trace that its events carry."""

    caller: Caller
    wanted: WantedT
    trace: Trace


@dataclass(frozen=True, slots=True)
class Busy:
    """The outcome of a request that needs a row which another transaction has locked. It has to be tried again."""
