"""Runs migrations whose statements a test sees before they are sent, and may interrupt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.pool import NullPool

import migrations.batches
from migrations.config import alembic_config
from migrations.numbering import Step, read_steps

VERSIONS = Path(migrations.batches.__file__).parent / "versions"


class Interrupted(Exception):
    """Stands for a release step that is killed."""


def step_named(name: str) -> Step:
    """The step whose file ends with this, whatever its number."""
    (step,) = (step for step in read_steps(VERSIONS) if step.path.name.endswith(f"_{name}.py"))
    return step


def revision_before(name: str) -> str:
    """The revision before the step whose file ends with this."""
    (parent,) = step_named(name).parents
    return parent


def upgrade_watched(
    url: str, before_statement: Callable[[str], None], revision: str = "head", **connect_args: Any
) -> None:
    """Upgrade, and show each statement before it is sent."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args=connect_args
    )

    def show(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        before_statement(statement)

    event.listen(engine, "before_cursor_execute", show)
    config = alembic_config()
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, revision)
    finally:
        engine.dispose()


class Batches:
    """Counts the statements that begin with these words, and raises `Interrupted` before the `kill_at`-th."""

    def __init__(self, words: str, kill_at: int | None = None) -> None:
        self._words = words
        self._kill_at = kill_at
        self._seen = 0

    def __len__(self) -> int:
        return self._seen

    def __call__(self, statement: str) -> None:
        if statement.startswith(self._words):
            self._seen += 1
            if self._seen == self._kill_at:
                raise Interrupted


def interrupt_at(words: str) -> Callable[[str], None]:
    """What raises `Interrupted` before a statement with these words."""

    def kill(statement: str) -> None:
        if words in statement:
            raise Interrupted

    return kill
