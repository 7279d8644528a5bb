"""Password hashing with argon2id, off the event loop."""

import asyncio
import os
import random
import string
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import pairwise
from time import monotonic, sleep, thread_time
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.errors import Fault, InvalidInput, Overloaded
from services.settings import Settings

ResultT = TypeVar("ResultT")

_HAS_PLACE: ContextVar[bool] = ContextVar("has_place", default=False)
_NICENESS = 19
_FLOOD = 10.0
"""How many seconds after a request found no place there still counts as being a flood."""
_REST = 12
"""In a flood, a thread rests this many times as long as it has worked."""
_LONGEST_REST = 1.0
"""Seconds."""

_DECORATION = f"{string.digits}{string.punctuation}{string.whitespace}"
_MOST_DECORATION = 6
_FEWEST_CHARACTERS = 5


class Passwords:
    """Hashes and checks passwords in threads; argon2 releases the GIL, so the event loop is not blocked.

    At most `concurrent` run at a time, so that a burst of sign-ins cannot exhaust memory (`argon2_memory_kib` each).
    They run at a low priority: other requests and PostgreSQL, if it is on the same host, come first. At most
    `password_queue` wait: beyond that, `Overloaded` is raised, so that those who wait are served soon. While
    more come than that, each thread also rests between two passwords, since even work at a low priority slows down
    others' access to memory.
    """

    refusal_delay = 3.0
    """Seconds until a request is told that there is no place for it, or that it has to wait for its next attempt.

    More or less, at random: those that come together must not come together again.
    """

    def __init__(self, settings: Settings, concurrent: int | None = None) -> None:
        # Imported here: it takes 13 MiB, and a worker, which imports this module, handles no passwords.
        from zxcvbn.frequency_lists import FREQUENCY_LISTS

        # The 30,000 most common passwords of leaked collections.
        self._common = frozenset(FREQUENCY_LISTS["passwords"])
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_time_cost,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_parallelism,
        )
        # Half of the CPUs, so that a flood of sign-ins leaves the others to everyone else.
        concurrent = concurrent or max(1, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(concurrent, "passwords", _give_way)
        self._most = concurrent + settings.password_queue
        self._taken = 0
        self._flooded_until = 0.0
        self._worked = threading.local()
        # Checked for an unknown address, so that response times do not reveal which addresses exist.
        self._nobody = self._hasher.hash("the password of no account")

    def check_new(self, password: str, *personal: str) -> None:
        """Raises `InvalidInput` if the password is among the first that someone would guess.

        `personal` is what people know about the user, such as the address and the name.
        """
        fault = self._fault_of(password, *personal)
        if fault is not None:
            raise InvalidInput(f"the password {fault}; choose another one", [Fault(fault, "#/password")])

    async def hash(self, password: str) -> str:
        return await self._in_thread(self._hasher.hash, password)

    async def delay_refusal(self) -> None:
        """Wait for about `refusal_delay`."""
        await asyncio.sleep(self.refusal_delay * random.uniform(0.5, 1.5))  # noqa: S311

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for a request whose passwords are hashed or checked within the block, once or several times.

        It is taken before the request uses the database, so that a flood of sign-ins takes no connection away from
        other requests. Raises `Overloaded` if none is free; not at once, because a client that floods the service
        waits for that answer before sending the next request.
        """
        if _HAS_PLACE.get():
            yield
            return
        if self._taken >= self._most:
            self._flooded_until = monotonic() + _FLOOD
            await self.delay_refusal()
            raise Overloaded("too many people are signing in; send the request again")
        self._taken += 1
        token = _HAS_PLACE.set(True)
        try:
            yield
        finally:
            _HAS_PLACE.reset(token)
            self._taken -= 1

    async def matches(self, hashed: str | None, password: str) -> bool:
        """Whether the password is correct. Takes equally long if there is no hash to compare with."""
        right = await self._in_thread(self._verify, hashed or self._nobody, password)
        return right and hashed is not None

    def outdated(self, hashed: str) -> bool:
        """Whether the hash was made with parameters other than the current ones."""
        return self._hasher.check_needs_rehash(hashed)

    def _fault_of(self, password: str, *personal: str) -> str | None:
        folded = password.casefold()
        core = folded.strip(_DECORATION)
        if len(folded) - len(core) > _MOST_DECORATION:
            core = folded
        if folded in self._common or core in self._common:
            return "is a common password"
        if len(set(folded)) < _FEWEST_CHARACTERS:
            return f"must have at least {_FEWEST_CHARACTERS} different characters"
        if len({ord(after) - ord(before) for before, after in pairwise(folded)}) == 1:
            return "is a sequence of characters"
        known = {word for text in personal for word in (text.casefold(), text.casefold().partition("@")[0])}
        if folded in known or core in known:
            return "is your name or your address"
        return None

    async def _in_thread(self, work: Callable[..., ResultT], *arguments: str) -> ResultT:
        async with self.place():
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, *arguments)

    def _run(self, work: Callable[..., ResultT], *arguments: str) -> ResultT:
        at = monotonic()
        if at < self._flooded_until:
            # Not after the work: whoever waits for its result need not wait for the rest.
            sleep(max(0.0, getattr(self._worked, "rested_at", 0.0) - at))
        # Not the time that has passed, which at a low priority is long on a busy machine.
        began = thread_time()
        try:
            return work(*arguments)
        finally:
            self._worked.rested_at = monotonic() + min(_LONGEST_REST, _REST * (thread_time() - began))

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False


def _give_way() -> None:
    """Lower the priority of this thread. Where it would be that of the whole process, leave it."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
