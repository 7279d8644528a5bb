"""Alembic's configuration for callers in Python: the command line's `migrate`, the embedded start, the tests."""

from pathlib import Path

from alembic.config import Config


def alembic_config(database_url: str | None = None, schema: str | None = None) -> Config:
    """A configuration for `alembic.command.upgrade(...)` and its siblings; no `alembic.ini` is needed.

    `database_url` and `schema` default to those of the settings. The commands start an event loop of their own: call
    them where none is running, or through `asyncio.to_thread`.
    """
    config = Config()
    # The percent sign is the configuration parser's own.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if database_url is not None:
        config.attributes["database_url"] = database_url
    if schema is not None:
        config.attributes["schema"] = schema
    return config
