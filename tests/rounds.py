"""The rounds of the event loop, counted."""

import asyncio


class Rounds:
    """Inside the block: the number of rounds of the event loop."""

    def __enter__(self) -> "Rounds":
        self.number, self._ends = 0, False
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True

    def _count(self) -> None:
        self.number += 1
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._count)
