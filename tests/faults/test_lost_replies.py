"""The API is killed between the commit and the reply: the retry gets the stored reply, and nothing happens twice."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.local.embedded.ports import any_free_port
from services.operations import service as operations
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import rows
from tests.factories import make_product, make_user
from tests.processes import running, running_api, wait_until


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def post(url: str, body: dict[str, Any], headers: dict[str, str]) -> httpx2.Response:
    return httpx2.post(url, json=body, headers=headers, timeout=30)


async def effects(database: Database) -> dict[str, Any]:
    """What each kind of request leaves, apart from the stored replies."""
    tables = ("transfers", "entries", "orders", "events", "outbox")
    return {table: (await rows(database, f"SELECT count(*) FROM {table}"))[0] for table in tables}


def wanted_of(name: str, recipient: User, product_id: int) -> tuple[str, dict[str, Any], int]:
    """Path, body and status of the reply that gets lost."""
    item: dict[str, Any] = {"to_user_id": recipient.id, "amount": "3.00"}
    too_much = {**item, "amount": "5000.00"}
    known: dict[str, tuple[str, dict[str, Any], int]] = {
        "transfer": ("/v1/transfers", item, 201),
        "refused transfer": ("/v1/transfers", too_much, 402),
        "batch": ("/v1/transfers/batch", {"mode": "independent", "transfers": [item, too_much, item]}, 200),
        "atomic batch": ("/v1/transfers/batch", {"mode": "atomic", "transfers": [item, item]}, 200),
        "refused batch": ("/v1/transfers/batch", {"mode": "atomic", "transfers": [item, too_much]}, 402),
        "order": ("/v1/orders", {"items": [{"product_id": product_id, "quantity": 2}]}, 201),
    }
    return known[name]


@pytest.mark.parametrize("name", ["transfer", "refused transfer", "batch", "atomic batch", "refused batch", "order"])
async def test_a_reply_that_is_lost_with_the_api_is_returned_to_a_retry(
    database: Database, settings: Settings, tmp_path: Path, name: str
) -> None:
    sender, recipient = await make_user(database, credits="100"), await make_user(database)
    product = await make_product(database, price="4.00")
    path, body, status = wanted_of(name, recipient, product.id)
    headers = {
        "Authorization": f"Bearer {Tokens.from_settings(settings).make(session_of(sender.id))}",
        "Idempotency-Key": "k-1",
    }
    before = await effects(database)

    port = any_free_port()
    with running(["-m", "tests.faults.lossy_api", str(port)], settings, tmp_path / "lossy.log") as lossy:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), "the API that will die")
        with pytest.raises(httpx2.TransportError):
            post(f"http://127.0.0.1:{port}{path}", body, headers)
        wait_until(lambda: not lossy.lives, "its end")

    after = await effects(database)
    assert (after != before) == (status < 400), "the effect was committed before the reply"
    assert await rows(database, "SELECT status FROM idempotency_keys") == [status]
    with running_api(settings, tmp_path / "api.log") as (_, url):
        wait_until(lambda: answers(url), "the API")
        replies = [post(f"{url}{path}", body, headers) for _ in range(2)]
        other = post(f"{url}{path}", {**body, "dry_run": True}, headers)
    for reply in replies:
        assert (reply.status_code, reply.headers["idempotency-replayed"]) == (status, "true"), reply.text
    assert replies[0].content == replies[1].content
    assert other.status_code == 422
    assert await effects(database) == after
    if name == "batch":
        assert [result["status"] for result in replies[0].json()["results"]] == ["posted", "failed", "posted"]
    stored = await rows(database, "SELECT id::text FROM transfers WHERE kind = 'transfer' ORDER BY id")
    assert all(transfer_id in replies[0].text for transfer_id in stored)
    async with UnitOfWork(database.read) as uow:
        assert (await operations.books(uow)).balanced
