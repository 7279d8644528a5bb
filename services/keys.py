"""The keys in Redis. All of them are made here, so that installations and tenants can share one Redis."""

from dataclasses import dataclass

from services.settings import Settings


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one tenant of one installation."""

    jobs: str
    """ARQ's queue. ARQ's keys for a single job (`arq:job:ID`) have only the job's id, which is random by default."""
    doorbell: str
    rates: str
    """The start of the keys that count requests; `limits` adds a colon."""

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        """The keys for these settings."""
        place = f"{settings.redis_prefix}:{settings.database_schema}"
        return cls(jobs=f"{place}:jobs", doorbell=f"{place}:doorbell", rates=f"{place}:rates")
