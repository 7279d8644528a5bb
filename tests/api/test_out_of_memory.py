"""A request that runs out of memory is undone, and its client is told to retry."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.unit_of_work import UnitOfWork
from tests.api.client import Api, assert_problem
from tests.factories import make_user


async def counted(api: Api) -> float:
    families = text_string_to_metric_families((await api.get("/metrics")).text)
    return next(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "waybill_http_out_of_memory_total"
    )


@pytest.mark.usefixtures("alone")
async def test_a_request_that_runs_out_of_memory_leaves_nothing_and_can_be_sent_again(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    payer, payee = await make_user(api.database, credits="10"), await make_user(api.database)
    before, counted_before = await api.everything(), await counted(api)
    flush = UnitOfWork.flush

    async def without_memory(uow: UnitOfWork) -> None:
        await flush(uow)
        raise MemoryError

    monkeypatch.setattr(UnitOfWork, "flush", without_memory)
    body = {"to_user_id": payee.id, "amount": "1.00"}
    refused = await api.post("/v1/transfers", by=payer, key="k", json=body)
    monkeypatch.undo()

    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert any(record.levelname == "ERROR" and "out of memory" in record.message for record in caplog.records)
    assert await counted(api) == counted_before + 1
    assert await api.everything() == before
    assert api.app.state.waybill.database.engine.pool.checkedout() == 0
    assert (await api.post("/v1/transfers", by=payer, key="k", json=body)).status_code == 201


async def test_running_out_of_memory_outside_a_route_is_answered_the_same_way(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("services.api.middleware.Request", without_memory)
    too_long = {"Content-Length": str(10**9)}
    refused = await api.post("/v1/transfers", headers=too_long, content=b"{}")
    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
