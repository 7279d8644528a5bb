"""The database's clock decides about times, however wrong the clock of the application is."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from services.settings import Settings
from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs, sweep
from tests.clocks import mislead, step_the_host
from tests.factories import make_operator, make_user

HOUR = 3600.0
TEN_MINUTES = 600

pytestmark = pytest.mark.parametrize("seconds", [-HOUR, HOUR], ids=["behind", "ahead"])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"hold_ttl": TEN_MINUTES, "awaiting_payment_ttl": TEN_MINUTES})


async def seconds_left(api: Api, table: str) -> float:
    return float(
        await api.scalar(f"SELECT extract(epoch FROM expires_at - now()) FROM {table} WHERE expires_at IS NOT NULL")
    )


async def test_an_order_keeps_its_hold_for_as_long_as_the_settings_say(
    api: Api, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop(credits="50")
    mislead(monkeypatch, seconds)
    order = await api.place(buyer, (product, 2))

    assert TEN_MINUTES - 60 < await seconds_left(api, "transfers") <= TEN_MINUTES
    assert await sweep(api.database) == (0, 0)
    await api.process()
    assert await api.status_of(order["id"]) == "confirmed"
    await assert_nothing_differs(api.database)


async def test_an_order_awaits_its_payment_for_as_long_as_the_settings_say(
    api: Api, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop(credits="5")
    operator = await make_operator(api.database)
    mislead(monkeypatch, seconds)
    order = await api.place(buyer, (product, 1))
    assert order["status"] == "awaiting_payment"
    assert TEN_MINUTES - 60 < await seconds_left(api, "orders") <= TEN_MINUTES
    assert await sweep(api.database) == (0, 0)

    await api.post("/v1/top-ups", by=operator, json={"user_id": buyer.id, "amount": "50"})
    assert (await api.post(f"/v1/orders/{order['id']}/pay", by=buyer)).status_code == 200
    assert TEN_MINUTES - 60 < await seconds_left(api, "transfers") <= TEN_MINUTES
    assert await sweep(api.database) == (0, 0)
    await api.process()
    assert await api.status_of(order["id"]) == "confirmed"


async def test_an_api_on_a_host_whose_clock_is_far_off_is_not_ready_until_it_is_right(
    api: Api, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def status() -> int:
        async with api.database.engine.connect() as connection:
            await api.app.state.waybill.skew.look(connection)
        return (await api.get("/readyz")).status_code

    step_the_host(monkeypatch, seconds)
    assert await status() == 503
    # Everything it does is correct.
    buyer, _, product = await api.shop(credits="50")
    await api.place(buyer, (product, 1))
    step_the_host(monkeypatch, 0)
    assert await status() == 200


async def test_the_end_of_a_hold_is_compared_with_the_clock_that_ends_it(
    api: Api, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = await make_user(api.database, credits="25"), await make_user(api.database)
    mislead(monkeypatch, seconds)

    async def hold(expires_at: datetime) -> httpx2.Response:
        wanted = {"to_user_id": payee.id, "amount": "10.00", "expires_at": expires_at.isoformat()}
        return await api.post("/v1/holds", by=payer, json=wanted)

    at = datetime.now(UTC)
    longest = timedelta(seconds=api.settings.transfer_hold_max)
    for refused in (at - timedelta(minutes=1), at + longest + timedelta(minutes=1)):
        assert_problem(await hold(refused), 422, "invalid_input", pointers=["#/expires_at"])
    assert await api.credits_of(payer) == amounts("25")
    for allowed in (at + timedelta(minutes=1), at + longest - timedelta(minutes=1)):
        assert (await hold(allowed)).status_code == 201
    assert await sweep(api.database) == (0, 0)
