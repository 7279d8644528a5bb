"""A browser, and the processes whose console it opens."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.async_api import Browser, async_playwright, expect

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.database import Database
from services.outbox.bulk.models import BulkKind
from services.outbox.bulk.schemas import BulkFilter
from services.settings import Settings
from services.users.rights import Role
from tests.browser.shown import Shown, letters
from tests.browser.visitor import PATIENCE
from tests.concurrency.bulk import start
from tests.concurrency.ticks import Tick, append, make_effects, rows
from tests.factories import make_product, make_user
from tests.installed import installed
from tests.processes import Running, running, running_api, wait_until


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Chromium without a window."""
    program = installed("chromium", "chromium")
    expect.set_options(timeout=PATIENCE)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=program)
        yield started
        await started.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Ticks are about nothing that could be locked, so their order is not checked."""
    return settings.model_copy(update={"outbox_order_check": False})


@pytest.fixture
async def url(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a running API."""
    with running_api(settings, tmp_path / "api.log") as (api, address):
        await asyncio.to_thread(wait_until, lambda: _is_ready(address), f"the API: {api.log}")
        yield address


@pytest.fixture
async def ticking(database: Database) -> Database:
    """A database in which ticks take effect, and fail while `causes` has a row."""
    await make_effects(database)
    await rows(database, "CREATE TABLE causes (name text)")
    return database


@pytest.fixture
def worker(ticking: Database, settings: Settings, tmp_path: Path) -> Iterator[Running]:
    """A running worker. It may not be ready yet."""
    with running(["-m", "tests.browser.worker"], settings, tmp_path / "worker.log") as started:
        yield started


@pytest.fixture
async def shown(ticking: Database, settings: Settings, url: str, worker: Running) -> Shown:
    """A service in which something of each kind has happened: orders, failures, a bulk action."""
    operator = await make_user(ticking, role=Role.operator, full_name="Olive Operator")
    buyer = await make_user(ticking, credits="500", full_name="Bea Buyer")
    product = await make_product(ticking)
    await rows(ticking, "INSERT INTO causes VALUES ('the carrier')")
    await append(ticking, *(Tick(name=f"parcel-{number}") for number in range(3)))
    bearer = Tokens.from_settings(settings).make(session_of(buyer.id))
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {bearer}"}) as client:
        for quantity in (1, 2):
            placed = await client.post(
                "/v1/orders",
                headers={"Idempotency-Key": f"order-{quantity}"},
                json={"items": [{"product_id": product.id, "quantity": quantity}], "reference": f"kitchen-{quantity}"},
            )
            assert placed.status_code == 201, placed.text
    position, fingerprint = await letters(ticking, 3, worker)
    # What waits behind a dead letter.
    await append(ticking, *(Tick(name=f"parcel-{number}", number=1) for number in range(3)))
    action = await start(ticking, BulkKind.discard, BulkFilter(fingerprint="0" * 16))
    return Shown(url, operator, buyer, placed.json()["id"], position, fingerprint, str(action))


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).is_success
    except httpx2.TransportError:
        return False
