"""pytest-alembic's own checks, called as functions: its collector does not work with pytest 9."""

from collections.abc import Iterator

import pytest
from pytest_alembic import Config, MigrationContext, runner
from pytest_alembic.tests import default
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

from migrations.config import alembic_config


@pytest.fixture
def migrations(empty_database_url: str) -> Iterator[MigrationContext]:
    """The history, on an empty database."""
    engine = create_engine(make_url(empty_database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with runner(Config(alembic_config=alembic_config()), engine) as context:
        yield context
    engine.dispose()


def test_single_head(migrations: MigrationContext) -> None:
    default.test_single_head_revision(migrations)


def test_upgrade_runs_from_base_to_head(migrations: MigrationContext) -> None:
    default.test_upgrade(migrations)


def test_models_match_the_migrated_tables(migrations: MigrationContext) -> None:
    default.test_model_definitions_match_ddl(migrations)


def test_every_step_goes_down_and_up(migrations: MigrationContext) -> None:
    default.test_up_down_consistency(migrations)
