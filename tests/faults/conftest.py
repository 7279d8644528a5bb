from collections.abc import Iterator
from pathlib import Path

import pytest

from services.database import Database
from services.local.embedded import EmbeddedRedis
from services.settings import Settings
from tests.concurrency.ticks import make_effects


@pytest.fixture
async def ticking(database: Database) -> Database:
    """A database in which ticks take effect."""
    await make_effects(database)
    return database


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Ticks are about nothing that could be locked, so their order is not checked."""
    return settings.model_copy(update={"outbox_order_check": "ticking" not in request.fixturenames})


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis of this test alone; stopped, it comes back on the same port."""
    with EmbeddedRedis(tmp_path / "redis", durable=False) as server:
        yield server
