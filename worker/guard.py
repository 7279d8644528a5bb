"""Ends a worker process that makes no progress or has lost one of its tasks, and says why."""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any, NoReturn

from services.logs import Shown

logger = logging.getLogger(__name__)

BROKEN = 70
"""The exit code: EX_SOFTWARE of sysexits.h."""

_INTERVAL = 1.0
"""The most seconds between two checks."""

_TO_SPEAK = 3.0
"""Time limit for the last log message, in seconds: the log itself may be what blocks the process."""

_MARGIN = 5.0
"""Seconds that the watching thread gets beyond the limit: it cannot run while code never releases the interpreter."""

_STDERR = 2

Signs = Callable[[], Mapping[str, object]]
"""For each busy part of the worker, something that changes as long as it makes progress."""


class WorkerBroken(Exception):
    """A task of the worker ended that should not have. It was logged with its error."""


class Guard:
    """Watches the event loop from a thread, and the parts of the worker from the event loop.

    If something makes no progress for `limit` seconds, the process ends immediately by `os._exit`; the server rolls
    back its transactions, as after a SIGKILL. A graceful shutdown gets `shutdown_limit` seconds.
    """

    def __init__(self, limit: float, shutdown_limit: float | None = None) -> None:
        self._limit = limit
        self._shutdown_limit = limit if shutdown_limit is None else shutdown_limit
        self._interval = min(_INTERVAL, limit / 10)
        self._beat_at = 0.0
        self._signs: Signs = dict
        self._leaving = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[NoReturn] | None = None

    def start(self) -> None:
        """Watch the running event loop, until the process ends."""
        self._beat_at = monotonic()
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        self._task = self._loop.create_task(self._watch_parts(), name="guard")
        self.look_after([self._task])
        threading.Thread(target=self._watch_loop, name="guard", daemon=True).start()

    def look_after(self, tasks: Iterable[asyncio.Task[None]], signs: Signs | None = None) -> None:
        """From now on, none of these tasks may end, and all signs must keep changing."""
        for task in tasks:
            task.add_done_callback(self._check_end)
        self._signs = signs or self._signs

    def leave(self) -> None:
        """The worker shuts down: from now on, tasks may end, and the process must."""
        self._leaving = True
        self._limit = self._shutdown_limit
        self._signs = lambda: {"the shutdown": 0}

    @property
    def is_broken(self) -> bool:
        """Whether a task has ended that should not."""
        return self._broken is not None and self._broken.done()

    async def broken(self) -> NoReturn:
        """Wait until a task ends that should not. Raises `WorkerBroken`."""
        assert self._broken is not None, "the guard has not been started"
        await asyncio.shield(self._broken)
        raise AssertionError("it only ever raises")

    def _check_end(self, task: asyncio.Task[None]) -> None:
        if self._leaving:
            return
        error = None if task.cancelled() else task.exception()
        reason = "was cancelled" if task.cancelled() else "returned" if error is None else f"failed: {Shown(error)!r}"
        assert self._broken is not None
        try:
            logger.critical(
                "the task %r %s; this worker stops with exit code %d", task.get_name(), reason, BROKEN, exc_info=error
            )
        finally:
            if not self._broken.done():
                self._broken.set_exception(WorkerBroken(task.get_name()))
                # Retrieved here, in case nothing awaits it, as under plain ARQ. It is in the log.
                self._broken.exception()

    async def _watch_parts(self) -> None:
        still: dict[str, tuple[object, float]] = {}
        while True:
            self._beat_at = monotonic()
            signs = self._signs()
            still = {name: one for name, one in still.items() if name in signs and one[0] == signs[name]}
            for name, sign in signs.items():
                _, since = still.setdefault(name, (sign, self._beat_at))
                if self._beat_at - since > self._limit:
                    self._end(f"{name} made no progress for {self._limit:g} s")
            await asyncio.sleep(self._interval)

    def _watch_loop(self) -> None:
        while True:
            # If this thread cannot run, faulthandler exits with code 1; each round restarts its timer.
            faulthandler.dump_traceback_later(self._limit + _MARGIN, exit=True, file=_STDERR)
            sleep(self._interval)
            if monotonic() - self._beat_at > self._limit:
                self._end(f"the event loop was blocked for {self._limit:g} s")

    def _end(self, reason: str) -> NoReturn:
        speaking = threading.Thread(target=self._say, args=(reason,), daemon=True)
        speaking.start()
        speaking.join(_TO_SPEAK)
        if speaking.is_alive():
            faulthandler.dump_traceback(file=_STDERR)
        os._exit(BROKEN)

    def _say(self, reason: str) -> None:
        logger.critical("%s; this worker exits with code %d", reason, BROKEN, extra={"stacks": self._stacks()})

    def _stacks(self) -> str:
        """The stack of each thread and each task."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = []
        for ident, frame in sys._current_frames().items():
            lines += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(frame)]
        assert self._loop is not None
        for task in asyncio.all_tasks(self._loop):
            lines += [f"task {task.get_name()}:\n", *_awaiting(task)]
        return "".join(lines)


def _awaiting(task: asyncio.Task[Any]) -> Iterator[str]:
    """What the task awaits, what that awaits, and so on; the task's own stack has only the first of them."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            yield f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}\n'
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
