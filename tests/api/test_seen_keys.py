"""When API keys were last used is stored in the background, and what goes wrong there harms no request."""

import asyncio
import logging
from datetime import datetime, timedelta

import pytest
from sqlalchemy.exc import OperationalError

from services.api import seen_keys
from services.api.seen_keys import SeenKeys
from services.fields import now
from services.users.keys.repository import ApiKeyRepository
from services.users.models import User
from services.users.repository import UserRepository
from tests.api.client import Api, order_of
from tests.api.grouped import eventually
from tests.api.programs import is_valid, make_key, order_with
from tests.conftest import BOTH_PATHS
from tests.factories import make_user, plain_sql


@pytest.fixture
async def owner(api: Api) -> User:
    return await make_user(api.database)


def seen(api: Api) -> SeenKeys:
    found: SeenKeys = api.app.state.waybill.seen_keys
    return found


async def last_used(api: Api, key_id: str) -> datetime | None:
    found: datetime | None = await api.scalar(
        "SELECT last_used_at FROM api_keys WHERE id = CAST(:id AS uuid)", id=key_id
    )
    return found


@BOTH_PATHS
async def test_requests_write_nothing_about_it_and_one_statement_stores_it_for_all(
    api: Api, group_commit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    keys = [await make_key(api, buyer) for _ in range(3)]
    unused = await make_key(api, buyer)
    start = now()
    with plain_sql(monkeypatch) as ran:
        for made in keys:
            for _ in range(2):
                assert (await order_with(api, made, order_of((product, 1)))).status_code == 201
        assert not [sql for sql in ran if "UPDATE api_keys" in sql]
        await seen(api).store()
        assert len([sql for sql in ran if "UPDATE api_keys" in sql]) == 1
        await seen(api).store()
        assert len([sql for sql in ran if "UPDATE api_keys" in sql]) == 1, "nothing was used since"
    for made in keys:
        at = await last_used(api, made["id"])
        assert at is not None
        assert start <= at <= now()
    assert await last_used(api, unused["id"]) is None


@BOTH_PATHS
async def test_a_refused_request_is_not_a_use(api: Api, group_commit: bool) -> None:
    buyer, _, product = await api.shop()
    made = await make_key(api, buyer)
    for _ in range(2):
        assert (await order_with(api, made, order_of((product, 1)))).status_code == 201
    await seen(api).store()
    before = await last_used(api, made["id"])
    await api.execute("UPDATE api_keys SET revoked_at = now()")
    assert (await order_with(api, made, order_of((product, 1)))).status_code == 401
    assert not await is_valid(api, made)
    await seen(api).store()
    assert await last_used(api, made["id"]) == before


async def test_an_earlier_use_that_another_process_stores_later_does_not_count(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    assert await is_valid(api, made)
    later = now() + timedelta(minutes=1)
    await api.execute("UPDATE api_keys SET last_used_at = :later", later=later)
    await seen(api).store()
    assert await last_used(api, made["id"]) == later


async def test_it_goes_on_after_errors_and_loses_no_use(
    api: Api, owner: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, other = await make_key(api, owner), await make_key(api, owner)
    assert await is_valid(api, made)
    mark, attempts = ApiKeyRepository.mark_used, 0

    async def fail_twice(self: ApiKeyRepository, *uses: object) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 2:
            raise OperationalError("UPDATE", None, OSError("gone")) if attempts == 1 else RuntimeError("a mistake")
        await mark(self, *uses)  # type: ignore[arg-type]

    monkeypatch.setattr(ApiKeyRepository, "mark_used", fail_twice)
    monkeypatch.setattr(seen_keys, "INTERVAL", 0.01)
    async with SeenKeys(api.database.write) as running:
        running.used(*await the_key(api, made["id"]))
        await eventually(lambda: attempts >= 1)
        running.used(*await the_key(api, other["id"]))
        await eventually(lambda: attempts >= 3)
        assert running._running is not None
        assert not running._running.task.done()
    assert None not in (await last_used(api, made["id"]), await last_used(api, other["id"]))
    assert "could not store when API keys were last used" in caplog.text


async def the_key(api: Api, key_id: str) -> tuple[bytes, int]:
    hashed = await api.scalar("SELECT hash FROM api_keys WHERE id = CAST(:id AS uuid)", id=key_id)
    return hashed, await api.scalar("SELECT user_id FROM api_keys WHERE id = CAST(:id AS uuid)", id=key_id)


async def test_a_process_that_ends_stores_what_it_knows(api: Api, owner: User) -> None:
    made = await make_key(api, owner)
    async with SeenKeys(api.database.write) as running:
        running.used(*await the_key(api, made["id"]))
    assert await last_used(api, made["id"]) is not None


async def test_a_locked_key_does_not_stop_a_process_from_ending(
    api: Api, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make_key(api, owner)
    monkeypatch.setattr(seen_keys, "_LAST_PATIENCE", 0.05)
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql("SELECT FROM api_keys FOR UPDATE")
        async with asyncio.timeout(5), SeenKeys(api.database.write) as running:
            running.used(*await the_key(api, made["id"]))
    assert await last_used(api, made["id"]) is None


async def test_the_end_of_the_task_is_reported(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    running = seen(api)._running
    assert running is not None
    running.task.cancel()
    await eventually(running.task.done)
    await asyncio.sleep(0)
    (line,) = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert "API keys: the task that stores their last use ended (it was cancelled)" in line.getMessage()


async def test_the_number_of_remembered_keys_is_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_keys, "_REMEMBERED", 3)
    remembered = SeenKeys(api.database.write)
    for number in range(5):
        remembered.used(bytes([number]), number)
        remembered.used(bytes([0]), 0)
    assert [await remembered.owner_of(bytes([number])) for number in range(5)] == [0, None, None, 3, 4]


async def test_a_write_that_is_cancelled_at_the_end_is_done_after_all(
    api: Api, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make_key(api, owner)
    monkeypatch.setattr(seen_keys, "INTERVAL", 0.01)
    mark, begun = ApiKeyRepository.mark_used, 0

    async def hang_once(self: ApiKeyRepository, *uses: object) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            await asyncio.sleep(60)
        await mark(self, *uses)  # type: ignore[arg-type]

    monkeypatch.setattr(ApiKeyRepository, "mark_used", hang_once)
    async with SeenKeys(api.database.write) as running:
        running.used(*await the_key(api, made["id"]))
        await eventually(lambda: begun == 1)
    assert await last_used(api, made["id"]) is not None


async def test_a_database_that_is_away_is_not_asked_twice_whose_a_key_is(
    api: Api, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await make_key(api, owner)
    hashed, user_id = await the_key(api, made["id"])
    remembered = SeenKeys(api.database.write)

    async def away(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", None, OSError("gone"))

    with monkeypatch.context() as patch:
        patch.setattr(UserRepository, "with_key", away)
        assert await remembered.owner_of(hashed) is None
    assert await remembered.owner_of(hashed) == user_id
