"""Request schemas for consumers of the event log."""

from services.operations.outbox.schemas import Because
from services.outbox.log.schemas import Start


class ConsumerReset(Because):
    """Where a consumer continues: at the beginning of the log, or with the next new event."""

    to: Start
