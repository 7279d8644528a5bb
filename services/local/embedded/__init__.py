"""PostgreSQL and Redis as child processes, for `waybill up` and for tests: no Docker, no installation, any user."""

from services.local.embedded.child import EmbeddedServerError, PortTaken
from services.local.embedded.postgres import EmbeddedPostgres
from services.local.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServerError", "PortTaken"]
