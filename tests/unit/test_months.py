"""The month of an event's id, and where a month begins."""

from datetime import UTC, datetime

from uuid_utils.compat import uuid7

from services.fields import id_at
from services.outbox.retention.repository import month_bounds, month_of


def test_an_id_gives_its_month() -> None:
    moment = datetime(2021, 3, 31, 12, tzinfo=UTC)
    assert month_of(uuid7(nanoseconds=int(moment.timestamp()) * 1_000_000_000)) == (2021, 3)
    assert id_at(datetime(2021, 4, 1, tzinfo=UTC)) == month_bounds(2021, 4)[0]
