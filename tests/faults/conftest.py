import pytest

from services.database import Database
from tests.concurrency.ticks import make_effects


@pytest.fixture
async def ticking(database: Database) -> Database:
    """A database in which ticks take effect."""
    await make_effects(database)
    return database
