"""The queue of requests that wait for a group. Callers take turns: a flood from one does not shut out others."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

from fastapi import Request, Response

from services.idempotency.repository import RequestKey, StoredReply
from services.outbox.events import Trace
from services.users.models import Credential

WantedT = TypeVar("WantedT")


@dataclass(frozen=True, slots=True)
class Answered:
    """The group is committed, and this is the reply."""

    response: Response


@dataclass(frozen=True, slots=True)
class Replay:
    """The request took effect before: its stored reply is the answer."""

    stored: StoredReply


@dataclass(frozen=True, slots=True)
class Alone:
    """The request has not taken effect, and must be handled alone."""


Outcome: TypeAlias = Answered | Replay | Alone

_numbers = count()


@dataclass(slots=True, eq=False)
class Intent(Generic[WantedT]):
    """A well-formed request that waits for its group, and what becomes of it."""

    request: Request
    caller: Credential
    key: RequestKey
    wanted: WantedT
    trace: Trace
    outcome: "asyncio.Future[Outcome]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived: float = field(default_factory=monotonic)
    number: int = field(default_factory=lambda: next(_numbers))
    tries: int = 0
    """How many groups it has been in that could not carry it out."""
    is_looked_up: bool = False
    """Whether its outcome is unknown and being looked up."""

    def settle(self, outcome: Outcome) -> None:
        """Let the request continue. Nothing happens if it has ended."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Let the request end with this error. Nothing happens if it has ended."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class Turns(Generic[WantedT]):
    """Waiting requests. Callers take turns; the requests of one caller stay in their order.

    `weight` says how much of a group's room a request takes, `names` what no two requests of one caller in a group may
    have in common, besides their keys.
    """

    def __init__(
        self, weight: Callable[[WantedT], int], names: Callable[[WantedT], Hashable], most_weight: int
    ) -> None:
        self._weight = weight
        self._names = names
        self._most_weight = most_weight
        self._waiting: dict[int, deque[Intent[WantedT]]] = {}
        self._callers: deque[int] = deque()
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def put(self, intent: Intent[WantedT]) -> None:
        """Add a request behind its caller's others."""
        caller = intent.key.caller_id
        if caller not in self._waiting:
            self._waiting[caller] = deque()
            self._callers.append(caller)
        self._waiting[caller].append(intent)
        self._number += 1

    def put_back(self, intents: Iterable[Intent[WantedT]]) -> None:
        """Return requests that were taken: each is the first of its caller again, and their callers are next."""
        for intent in sorted(intents, key=lambda one: one.number, reverse=True):
            caller = intent.key.caller_id
            if caller in self._waiting:
                self._callers.remove(caller)
            else:
                self._waiting[caller] = deque()
            self._callers.appendleft(caller)
            self._waiting[caller].appendleft(intent)
            self._number += 1

    def take(self, most: int) -> list[Intent[WantedT]]:
        """The next group, in the order of arrival: one request of each caller in turn, until there is no more room.

        There is room for `most` requests, or for fewer if together they weigh too much.

        A request that has a key or a name in common with an earlier one of its caller waits for the next group, and
        with it whatever else its caller sent after it.
        """
        taken: list[Intent[WantedT]] = []
        left_out: list[int] = []
        seen: set[Hashable] = set()
        weight = 0
        while self._callers and len(taken) < most:
            caller = self._callers[0]
            waiting = self._waiting[caller]
            intent = waiting[0]
            if intent.outcome.done():
                # The request was cancelled.
                self._remove_first(waiting)
                continue
            more = self._weight(intent.wanted)
            if taken and weight + more > self._most_weight:
                break
            key, name = (caller, intent.key.method, intent.key.path, intent.key.key), self._names(intent.wanted)
            if key in seen or (name is not None and (caller, name) in seen):
                left_out.append(self._callers.popleft())
                continue
            seen |= {key, (caller, name)}
            weight += more
            taken.append(intent)
            self._remove_first(waiting)
        self._callers.extendleft(reversed(left_out))
        taken.sort(key=lambda one: one.number)
        return taken

    def ahead(self, caller: int) -> int:
        """The most requests that are carried out before a new one of this caller."""
        own = len(self._waiting.get(caller, ()))
        return min(self._number, (own + 1) * max(1, len(self._callers)))

    def clear(self) -> list[Intent[WantedT]]:
        """Take everything."""
        everything = [intent for waiting in self._waiting.values() for intent in waiting]
        self._waiting.clear()
        self._callers.clear()
        self._number = 0
        return everything

    def _remove_first(self, waiting: deque[Any]) -> None:
        """Remove the first request of the caller whose turn it is; the caller goes to the end."""
        waiting.popleft()
        self._number -= 1
        caller = self._callers.popleft()
        if waiting:
            self._callers.append(caller)
        else:
            del self._waiting[caller]
