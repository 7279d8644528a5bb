"""Password hashing with argon2id, off the event loop."""

from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.settings import Settings


class Passwords:
    """Hashes and checks passwords in threads; argon2 releases the GIL, so the event loop is not blocked.

    At most `concurrent` run at a time, so that a burst of sign-ins cannot exhaust memory (`argon2_memory_kib` each).
    """

    def __init__(self, settings: Settings, concurrent: int = 2) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_time_cost,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_parallelism,
        )
        self._limiter = CapacityLimiter(concurrent)
        # Checked for an unknown address, so that response times do not reveal which addresses exist.
        self._nobody = self._hasher.hash("the password of no account")

    async def hash(self, password: str) -> str:
        return await to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter)

    async def matches(self, hashed: str | None, password: str) -> bool:
        """Whether the password is correct. Takes equally long if there is no hash to compare with."""
        right = await to_thread.run_sync(self._verify, hashed or self._nobody, password, limiter=self._limiter)
        return right and hashed is not None

    def outdated(self, hashed: str) -> bool:
        """Whether the hash was made with parameters other than the current ones."""
        return self._hasher.check_needs_rehash(hashed)

    def _verify(self, hashed: str, password: str) -> bool:
        try:
            return self._hasher.verify(hashed, password)
        except (VerificationError, InvalidHashError):
            return False
