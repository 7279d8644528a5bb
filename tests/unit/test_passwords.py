"""Passwords are hashed with argon2id, off the event loop."""

import asyncio
import os
import sys
import threading
from contextvars import Context
from typing import Literal

import pytest
from argon2 import PasswordHasher, extract_parameters

from services.errors import Overloaded
from services.settings import Environment, Settings
from services.users import passwords as module
from services.users.passwords import Passwords


def cheap(**more: int) -> Settings:
    given = {"argon2_memory_kib": 8, "argon2_time_cost": 1, "argon2_parallelism": 1, **more}
    return Settings(_env_file=None, environment=Environment.development, **given)  # type: ignore[arg-type]


async def test_the_right_password_matches_and_no_other() -> None:
    passwords = Passwords(cheap())
    hashed = await passwords.hash("correct horse")
    assert await passwords.matches(hashed, "correct horse")
    for wrong in ("", "correct hors", "Correct horse", "correct horse ", "correct horse\x00"):
        assert not await passwords.matches(hashed, wrong)


async def test_a_hash_is_argon2id_salted_and_does_not_hold_the_password() -> None:
    passwords = Passwords(cheap())
    first, second = await passwords.hash("correct horse"), await passwords.hash("correct horse")
    assert first.startswith("$argon2id$")
    assert first != second
    assert "horse" not in first
    assert len(first) <= 255


@pytest.mark.parametrize("hashed", ["", "!", "plain text", "$argon2id$broken", "$2b$12$abcdefghijklmnopqrstuv"])
async def test_an_invalid_hash_matches_nothing(hashed: str) -> None:
    assert not await Passwords(cheap()).matches(hashed, "anything")


async def test_an_unknown_user_matches_no_password_not_even_the_one_compared_with() -> None:
    passwords = Passwords(cheap())
    assert not await passwords.matches(None, "anything")
    assert not await passwords.matches(None, "nobody's password")


async def test_for_an_unknown_user_a_hash_is_checked_like_that_of_a_known_one() -> None:
    """The work is the same, so that the time of a reply does not tell."""
    passwords = Passwords(cheap())
    checked = []

    class Noting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
            checked.append(extract_parameters(str(hash)))
            return super().verify(hash, password)

    passwords._hasher = Noting()
    hashed = await Passwords(cheap()).hash("correct horse")
    assert not await passwords.matches(hashed, "wrong")
    assert not await passwords.matches(None, "wrong")
    known, unknown = checked
    assert known == unknown


class SlowHasher:
    """Stands in for argon2, and records how many hashes run at once."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def hash(self, password: str) -> str:
        with self._lock:
            self.threads.add(threading.get_ident())
            self._running += 1
            self.most = max(self.most, self._running)
        threading.Event().wait(0.05)
        with self._lock:
            self._running -= 1
        return password


async def test_hashing_leaves_the_event_loop_to_others_and_is_bounded() -> None:
    passwords = Passwords(cheap(), concurrent=2)
    hasher = SlowHasher()
    passwords._hasher = hasher  # type: ignore[assignment]
    hashing = asyncio.gather(*[passwords.hash(str(number)) for number in range(6)])
    ticks = 0
    while not hashing.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert await hashing == [str(number) for number in range(6)]
    assert threading.get_ident() not in hasher.threads
    assert hasher.most == 2
    assert ticks >= 5


async def test_a_hash_of_other_parameters_is_outdated() -> None:
    hashed = await Passwords(cheap()).hash("correct horse")
    assert not Passwords(cheap()).outdated(hashed)
    assert Passwords(cheap(argon2_memory_kib=64)).outdated(hashed)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own only on Linux")
async def test_passwords_are_hashed_at_a_low_priority() -> None:
    found = []

    class Noting:
        def hash(self, password: str) -> str:
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return password

    passwords = Passwords(cheap())
    passwords._hasher = Noting()  # type: ignore[assignment]
    await passwords.hash("x")
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found[0] > ours


async def test_beyond_the_queue_a_password_is_refused_and_those_who_wait_are_served() -> None:
    passwords = Passwords(cheap(password_queue=3), concurrent=2)
    passwords.refusal_delay = 0.0
    passwords._hasher = SlowHasher()  # type: ignore[assignment]
    hashing = [asyncio.create_task(passwords.hash(str(number))) for number in range(8)]
    await asyncio.wait(hashing, return_when=asyncio.FIRST_EXCEPTION)
    refused = [task for task in hashing if task.done() and isinstance(task.exception(), Overloaded)]
    assert len(refused) == 3
    served = await asyncio.gather(*[task for task in hashing if task not in refused])
    assert served == ["0", "1", "2", "3", "4"]
    assert await passwords.hash("later") == "later"


async def test_a_sign_in_that_is_given_up_leaves_its_place_in_the_queue() -> None:
    passwords = Passwords(cheap(password_queue=0), concurrent=1)
    passwords._hasher = SlowHasher()  # type: ignore[assignment]
    given_up = asyncio.create_task(passwords.hash("x"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert await passwords.hash("y") == "y"


async def test_threads_rest_only_while_there_is_no_place_for_all_and_never_after_the_last_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at, work, rests = 1000.0, 0.01, list[float]()

    def rest(seconds: float) -> None:
        nonlocal at
        rests.append(seconds)
        at += seconds

    class Slow(PasswordHasher):
        def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
            nonlocal at
            at += work
            return super().hash(password, salt=salt)

    passwords = Passwords(cheap(password_queue=0), concurrent=1)
    passwords.refusal_delay = 0.0
    passwords._hasher = Slow(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(module, "monotonic", lambda: at)
    monkeypatch.setattr(module, "thread_time", lambda: at)
    monkeypatch.setattr(module, "sleep", rest)

    for _ in range(3):
        await passwords.hash("one after another")
    assert rests == []
    async with passwords.place():
        with pytest.raises(Overloaded):
            # Not in the context that has the place.
            await asyncio.create_task(passwords.hash("too many"), context=Context())
    for _ in range(3):
        await passwords.hash("in a flood")
    assert rests == pytest.approx([module._REST * 0.01] * 3)
    rests.clear()
    # However slow the machine is.
    work = 5.0
    await passwords.hash("slowly")
    await passwords.hash("slowly")
    assert rests == pytest.approx([module._REST * 0.01, module._LONGEST_REST])
    rests.clear()
    at += module._FLOOD + 1
    await passwords.hash("afterwards")
    assert rests == []
