"""The keys in Redis."""

import re
from pathlib import Path

from services.keys import Keys
from services.settings import Settings
from tests.conftest import settings_for

ROOT = Path(__file__).parents[2]


def with_names(prefix: str, schema: str) -> Settings:
    return settings_for("postgresql://nowhere/none", "redis://nowhere").model_copy(
        update={"redis_prefix": prefix, "database_schema": schema}
    )


def test_installations_and_tenants_have_different_keys() -> None:
    all_keys = [Keys.of(with_names(prefix, schema)) for prefix in ("one", "two") for schema in ("public", "jobs")]
    names = [name for keys in all_keys for name in (keys.jobs, keys.doorbell, keys.rates)]
    assert len(set(names)) == 12
    assert names[:3] == ["one:public:jobs", "one:public:doorbell", "one:public:rates"]


def test_no_key_is_made_anywhere_else() -> None:
    made = re.compile(r"""["']waybill:""")
    files = [file for folder in ("services", "worker") for file in (ROOT / folder).rglob("*.py")]
    # What the command line prints begins with `waybill: `.
    found = [file.name for file in files if made.search(file.read_text().replace('"waybill: "', ""))]
    assert found == []
