"""The rows of an event as `OutboxRepository.append` writes them; a test compares them column by column."""

from typing import LiteralString

INTO_LOG: LiteralString = "INSERT INTO events (id, type, version, aggregate, payload, request_id)"
INTO_OUTBOX: LiteralString = "INSERT INTO outbox (event_id, aggregate, type)"
