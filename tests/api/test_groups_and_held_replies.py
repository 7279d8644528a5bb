"""Clients that always send their next request when they have a reply: two groups take turns, and no reply is stuck."""

import asyncio
from typing import Any

import pytest

from services.api import groups, held
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, order_of
from tests.concurrency.groups.watch import until
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user

CLIENTS, ORDERS = 16, 8
FOREVER = 1000.0
PROMPTLY = 20.0
"""Seconds within which a reply comes that nothing keeps."""


async def test_a_group_has_at_most_half_of_the_requests_that_are_under_way(api: Api) -> None:
    product = await make_product(api.database)
    buyers = [await make_user(api.database, credits="100") for _ in range(CLIENTS)]

    async def keep_ordering(number: int) -> None:
        for _ in range(ORDERS):
            await api.place(buyers[number], (product, 1))

    await asyncio.gather(*(keep_ordering(number) for number in range(CLIENTS)))
    sizes = await rows(api.database, "SELECT count(*) FROM idempotency_keys GROUP BY xmin::text ORDER BY 1 DESC")
    assert sum(sizes) == CLIENTS * ORDERS
    assert groups._FEWEST < sizes[0] <= CLIENTS // 2, sizes


class Stalled:
    """Units of work: the first one's commit waits, and the second one's, or even its reads, until they may go on."""

    def __init__(self, patch: pytest.MonkeyPatch, *, second_reads: bool) -> None:
        self.commits, self.reads = 0, 0
        self.may_commit, self.may_go_on = asyncio.Event(), asyncio.Event()
        commit, read = UnitOfWork.commit, UnitOfWork.read

        async def wait_and_commit(uow: UnitOfWork) -> None:
            self.commits += 1
            await (self.may_commit if self.commits == 1 else self.may_go_on).wait()
            await commit(uow)

        async def wait_and_read(uow: UnitOfWork, *asked: Any) -> Any:
            self.reads += 1
            if self.reads > 1 and not second_reads:
                await self.may_go_on.wait()
            return await read(uow, *asked)

        patch.setattr(UnitOfWork, "commit", wait_and_commit)
        patch.setattr(UnitOfWork, "read", wait_and_read)


@pytest.mark.parametrize("second_reads", [True, False], ids=["in its commit", "in its reads"])
async def test_replies_of_a_committed_group_do_not_wait_for_a_next_group_that_is_stuck(
    api: Api, monkeypatch: pytest.MonkeyPatch, second_reads: bool
) -> None:
    if second_reads:
        # What a group writes is on its way: that alone must let the replies before it go.
        monkeypatch.setattr(held, "PATIENCE", FOREVER)
    product = await make_product(api.database)
    one, other = [await make_user(api.database, credits="10") for _ in range(2)]
    stalled = Stalled(monkeypatch, second_reads=second_reads)
    first = asyncio.create_task(api.post("/v1/orders", by=one, json=order_of((product, 1))))
    try:
        await until(lambda: stalled.commits == 1)
        second = asyncio.create_task(api.post("/v1/orders", by=other, json=order_of((product, 1))))
        (committer,) = api.app.state.waybill.groups._committers.values()
        await until(lambda: len(committer._turns) == 1)
        stalled.may_commit.set()
        async with asyncio.timeout(PROMPTLY):
            assert (await first).status_code == 201
        assert not second.done()
    finally:
        stalled.may_commit.set()
        stalled.may_go_on.set()
    assert (await second).status_code == 201


async def test_a_reply_that_no_request_waits_behind_goes_out_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "PATIENCE", FOREVER)
    product = await make_product(api.database)
    buyer = await make_user(api.database, credits="10")
    async with asyncio.timeout(PROMPTLY):
        for _ in range(3):
            await api.place(buyer, (product, 1))
