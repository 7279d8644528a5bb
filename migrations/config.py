"""Alembic's configuration for callers in Python: `waybill migrate`, `waybill up`, the tests."""

import os
from pathlib import Path

from alembic.config import Config

ANALYTICS = "analytics"
"""The section of `alembic.ini` for the analytics database."""


def alembic_config(
    database_url: str | None = None,
    schema: str | None = None,
    section: str = "alembic",
    *,
    application: str | None = None,
    reader: str | None = None,
) -> Config:
    """A configuration for `alembic.command.upgrade(...)` and the like; no `alembic.ini` is needed.

    `database_url` (with the role of the owner) and `schema` default to the settings. `application` and `reader` are the
    roles to which privileges are granted; with a `database_url`, they default to none, otherwise to the settings. The
    commands start their own event loop: call them where none is running, or through `asyncio.to_thread`. The section
    `ANALYTICS` is for the analytics database.
    """
    config = Config(ini_section=section)
    # The configuration parser interpolates percent signs.
    folder = str(Path(__file__).parent).replace("%", "%%")
    config.set_main_option("script_location", folder)
    if section == ANALYTICS:
        config.set_main_option("version_locations", f"{folder}{os.sep}{ANALYTICS}{os.sep}versions")
    config.set_main_option("path_separator", "os")
    # As in alembic.ini: env.py numbers new files.
    config.set_main_option("revision_environment", "true")
    if database_url is not None:
        config.attributes["database_url"] = database_url
        config.attributes["roles"] = (application, reader)
    if schema is not None:
        config.attributes["schema"] = schema
    return config
