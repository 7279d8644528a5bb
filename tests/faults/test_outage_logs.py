"""An outage is logged once and then counted, however many requests and attempts it affects."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from alembic import command

from migrations.config import alembic_config
from services.local.embedded import EmbeddedPostgres
from services.settings import Settings
from tests.processes import running_api, wait_until

REQUESTS = 60


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A migrated server of this test alone; it may be stopped."""
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        command.upgrade(alembic_config(server.url()), "head")
        yield server


def test_requests_during_a_database_outage_log_one_line(
    settings: Settings, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"database_url": postgres.url()})
    with running_api(settings, tmp_path / "api.log") as (api, url):
        wait_until(lambda: answers(url), "the API")
        postgres.stop()
        with ThreadPoolExecutor(4) as clients:
            codes = list(clients.map(lambda _: ask(url), range(REQUESTS)))
        assert codes == [503] * REQUESTS
        lines = [line for line in api.said().splitlines() if "the database is unavailable" in line]
    # One for each kind of error: a connection that is lost, one that is refused.
    assert 1 <= len(lines) <= 3


def ask(url: str) -> int:
    return httpx2.get(f"{url}/v1/products", timeout=30).status_code


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).is_success
    except httpx2.TransportError:
        return False
