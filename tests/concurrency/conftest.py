import pytest

import worker.follower
from services.analytics import Analytics
from services.database import Database
from services.settings import Settings
from tests.concurrency.ticks import make_effects, rows
from tests.reporting import Reporter, Shop


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Room for many tasks at once. Ticks are about nothing that could be locked, so their order is not checked."""
    checks = "ticking" not in request.fixturenames
    return settings.model_copy(
        update={"database_pool_size": 20, "database_max_overflow": 0, "outbox_order_check": checks}
    )


@pytest.fixture
async def ticking(database: Database) -> Database:
    """A database in which ticks take effect."""
    await make_effects(database)
    return database


@pytest.fixture
def quick_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look for consumers, and consumers for events, more often than otherwise."""
    monkeypatch.setattr(worker.follower, "_IDLE", 0.02)
    monkeypatch.setattr(worker.follower, "_CLAIM", 0.05)


@pytest.fixture
async def told_log(database: Database) -> Database:
    """A database in which handlers note what they were given."""
    await rows(database, "CREATE TABLE told (id bigint GENERATED ALWAYS AS IDENTITY, what text, by text)")
    return database


@pytest.fixture
async def shop(database: Database) -> Shop:
    """A shop whose orders are reported."""
    return await Shop(database).open()


@pytest.fixture
def reporter(database: Database, analytics: Analytics) -> Reporter:
    """A worker's consumer of reports."""
    return Reporter(database, analytics)
