"""Password hashing with argon2id, off the event loop."""

import string
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.errors import Fault, InvalidInput, Overloaded
from services.settings import Settings

ResultT = TypeVar("ResultT")

_DECORATION = f"{string.digits}{string.punctuation}{string.whitespace}"
_MOST_DECORATION = 6
_FEWEST_CHARACTERS = 5


class Passwords:
    """Hashes and checks passwords in threads; argon2 releases the GIL, so the event loop is not blocked.

    At most `concurrent` run at a time, so that a burst of sign-ins cannot exhaust memory (`argon2_memory_kib` each).
    At most `password_queue` wait: beyond that, `Overloaded` is raised at once, so that those who wait are served soon.
    """

    def __init__(self, settings: Settings, concurrent: int = 2) -> None:
        # Imported here: it takes 13 MiB, and a worker, which imports this module, handles no passwords.
        from zxcvbn.frequency_lists import FREQUENCY_LISTS

        # The 30,000 most common passwords of leaked collections.
        self._common = frozenset(FREQUENCY_LISTS["passwords"])
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_time_cost,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_parallelism,
        )
        self._limiter = CapacityLimiter(concurrent)
        self._most = concurrent + settings.password_queue
        self._taken = 0
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

    def check_room(self) -> None:
        """Raises `Overloaded` if too many passwords wait to be hashed or checked."""
        if self._taken >= self._most:
            raise Overloaded("too many people are signing in; send the request again")

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
        self.check_room()
        self._taken += 1
        try:
            return await to_thread.run_sync(work, *arguments, limiter=self._limiter)
        finally:
            self._taken -= 1

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False
