"""The scheduled job expires everything that is due, slice by slice."""

import pytest

from services.database import Database
from services.settings import Settings
from tests.api.later import assert_nothing_differs, let_the_time_run_out
from tests.concurrency.test_ledger_and_stock import place
from tests.concurrency.test_resolving import held
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.logs import capture_logs
from worker.context import open_worker
from worker.jobs import expiry


async def run_job(settings: Settings) -> list[dict[str, object]]:
    async with open_worker(settings) as worker:
        with capture_logs() as logged:
            await expiry.expire({"worker": worker})
    return [dict(line) for line in logged if line["event"] == "expired"]


async def test_the_job_takes_slices_until_nothing_is_left(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_A_TRANSACTION", 2)
    payer, payee = await make_user(database, credits="100"), await make_user(database)
    for _ in range(5):
        await held(database, payer, payee, "1.00")
    poor, product = await make_user(database), await make_product(database)
    for _ in range(4):
        await place(database, poor, (product.id, 1))
    await let_the_time_run_out(database)

    ended = {"unpaid_orders": 4, "held_orders": 0, "holds": 5}
    assert await run_job(settings) == [{"event": "expired", "level": "info", **ended}]

    assert await rows(database, "SELECT DISTINCT state FROM transfers WHERE kind = 'transfer'") == ["expired"]
    assert await rows(database, "SELECT DISTINCT status FROM orders") == ["cancelled"]
    assert await rows(database, "SELECT held FROM accounts WHERE user_id = :id", id=payer.id) == [0]
    await assert_nothing_differs(database)
    assert await run_job(settings) == []
