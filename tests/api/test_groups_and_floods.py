"""One caller's flood neither shuts out others from groups, nor makes anyone wait without end."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from services.settings import Settings
from tests.api.client import Api, assert_problem, order_of
from tests.concurrency.groups.watch import Watch, queue
from tests.factories import make_product, make_user

SIZE = 8
FLOOD = 250
PATIENCE = 6.0
SLOW = 2.4


@pytest.fixture
def wait() -> float:
    """Seconds that a request may have to wait for its group."""
    return 60.0


@pytest.fixture
def settings(settings: Settings, wait: float) -> Settings:
    return settings.model_copy(update={"group_commit": True, "group_commit_size": SIZE, "group_commit_wait": wait})


class Shop:
    """A caller who floods the API with orders, and one who wants a single one."""

    def __init__(self, api: Api, watch: Watch) -> None:
        self._api = api
        self._watch = watch
        self.answered = 0

    async def open(self) -> None:
        self.product = await make_product(self._api.database, price="0.01")
        self.flooding = await make_user(self._api.database, credits="100")
        self.modest = await make_user(self._api.database, credits="100")

    async def order(self, by: Any) -> Any:
        reply = await self._api.post("/v1/orders", by=by, json=order_of((self.product, 1)))
        self.answered += reply.status_code == 201
        assert "idempotency-replayed" not in reply.headers
        return reply

    async def flood(self) -> list["asyncio.Task[Any]"]:
        """Begin so many orders, all while the first one's commit is held back."""
        return await queue(self._watch, self.order(self.flooding), (self.order(self.flooding) for _ in range(FLOOD)))


async def test_a_caller_with_hundreds_of_requests_in_the_queue_does_not_hold_up_another(api: Api, watch: Watch) -> None:
    shop = Shop(api, watch)
    await shop.open()
    tasks = await shop.flood()
    late = asyncio.create_task(shop.order(shop.modest))
    await watch.until_joined(late)
    watch.open()

    assert (await late).status_code == 201
    # It was in the next group. Later groups continue while its reply is on its way.
    assert shop.answered <= 5 * SIZE
    assert {reply.status_code for reply in await asyncio.gather(*tasks)} == {201}
    assert await api.scalar("SELECT count(*) FROM orders") == FLOOD + 2


@pytest.mark.parametrize("wait", [PATIENCE])
async def test_a_flood_is_told_to_come_back_and_another_caller_is_served(api: Api, watch: Watch) -> None:
    shop = Shop(api, watch)
    await shop.open()
    # How long a group takes is known only once there was one. Because of this one, the flood would take 9 seconds.
    watch.close(1)
    slow = asyncio.create_task(shop.order(shop.modest))
    await asyncio.sleep(SLOW)
    watch.open()
    assert (await slow).status_code == 201

    tasks = await shop.flood()
    late = asyncio.create_task(shop.order(shop.modest))
    await watch.until_joined(late)
    watch.open()

    assert (await late).status_code == 201
    replies = await asyncio.gather(*tasks)
    statuses = Counter(reply.status_code for reply in replies)
    assert statuses.keys() == {201, 503}, statuses
    for reply in replies:
        if reply.status_code == 503:
            assert_problem(reply, 503, "overloaded")
            assert reply.headers["retry-after"] == "1"
    # Those who were not turned away were served, and no one else.
    assert await api.scalar("SELECT count(*) FROM orders") == statuses[201] + 2
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == statuses[201] + 2
