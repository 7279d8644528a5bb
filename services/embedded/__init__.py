"""PostgreSQL and Redis as child processes, for `waybill up` and for tests: no Docker, no installation, any user."""

from services.embedded.child import EmbeddedServerError, PortTaken
from services.embedded.postgres import EmbeddedPostgres
from services.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServerError", "PortTaken"]
