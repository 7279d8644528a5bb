"""Replies of a committed group that wait a moment, so that the next group need not."""

import asyncio
from collections.abc import Mapping
from typing import Any

from services.api.turns import Intent, Outcome

PATIENCE = 0.005
"""Seconds after which replies go out even if the next group has not written its rows."""


class Held:
    """Replies of committed groups that go out once the next group's rows are on their way to the database.

    Sending them and reading the requests that follow takes this process about as long as the database needs for the
    rows. If that came first, the next group would wait for it, and the database for the next group.
    """

    def __init__(self) -> None:
        self._replies: dict[Intent[Any], Outcome] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._replies)

    def __contains__(self, intent: Intent[Any]) -> bool:
        return intent in self._replies

    def hold(self, replies: Mapping[Intent[Any], Outcome]) -> None:
        """Keep these until `hand_out`, but not for longer than a moment: the next group may have to wait."""
        self._replies |= replies
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self.hand_out)

    def hand_out_soon(self) -> None:
        """Hand out what is held now as soon as the running task waits."""
        self._stop_timer()
        asyncio.get_running_loop().call_soon(self._hand_out, dict(self._replies))

    def hand_out(self) -> None:
        """Hand out what is held."""
        self._stop_timer()
        self._hand_out(dict(self._replies))

    def _hand_out(self, replies: Mapping[Intent[Any], Outcome]) -> None:
        for intent, reply in replies.items():
            intent.settle(reply)
            self._replies.pop(intent, None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
