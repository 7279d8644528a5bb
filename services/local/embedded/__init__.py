"""PostgreSQL and Redis as child processes, for `waybill up` and tests: without Docker or installation, as any user."""

from services.local.embedded.child import EmbeddedServerError, PortTaken
from services.local.embedded.postgres import EmbeddedPostgres
from services.local.embedded.redis import EmbeddedRedis

__all__ = ["EmbeddedPostgres", "EmbeddedRedis", "EmbeddedServerError", "PortTaken"]
