"""No error of the database takes values of rows into a line of the log, a stored error or a message of a command.

Each sort of error is caused with a canary in the row, by the API, a worker, a job, a sweep and a command.
"""

import io
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeAlias

import httpx2
import psycopg
import pytest
from fastapi.exceptions import ResponseValidationError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import StatementError as SqlError

from services.app import create_app
from services.cli.console import CommandError
from services.cli.run import in_one
from services.database import Database
from services.local.embedded import EmbeddedPostgres
from services.logs import ConsoleLines, JsonLines
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed, Registry
from services.outbox.models import FailureReason
from services.outbox.policy import RetryPolicy, describe, history_entry
from services.outbox.subscription import Subscription
from services.settings import Settings
from services.sql import Statement, detail_of
from services.startup import reason_of
from services.sweeps.service import _summary
from services.unit_of_work import UnitOfWork
from services.users import service as users
from services.users.models import User, UserBase
from tests.concurrency.ticks import LATER, Tick, append, rows

CANARY = "canary-7391"
NUMBER = 7391739173917391
"""The canary where a number is needed."""

Cause: TypeAlias = Callable[[UnitOfWork], Awaitable[object]]

_INSERT = """
    INSERT INTO users (email, full_name, role, hashed_password) VALUES (:email, :name, :role, 'x')
"""
_USER = Statement(_INSERT)


async def _add(uow: UnitOfWork, *, email: str = f"{CANARY}@example.com", role: str = "customer") -> None:
    await uow.users.sql.run(_USER, email=email, name=CANARY, role=role)


async def unique(uow: UnitOfWork) -> None:
    await _add(uow)
    await _add(uow)


async def check(uow: UnitOfWork) -> None:
    await _add(uow, role=CANARY)


async def check_after_another_statement(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT 1"))
    await _add(uow, role=CANARY)


async def missing(uow: UnitOfWork) -> None:
    await uow.users.sql.run(Statement("INSERT INTO users (email, full_name) VALUES (:email, :email)"), email=CANARY)


async def foreign_key(uow: UnitOfWork) -> None:
    await uow.users.sql.run(Statement("INSERT INTO recovery_codes VALUES (:id, sha256('x'))"), id=NUMBER)


async def foreign_key_at_the_commit(uow: UnitOfWork) -> None:
    # No table has a deferred constraint on what a person typed: one is made here.
    for sql in (
        "CREATE TEMP TABLE kept (word text UNIQUE) ON COMMIT DROP",
        "CREATE TEMP TABLE refers (word text REFERENCES kept (word) DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP",
    ):
        await uow.users.sql.run(Statement(sql))
    await uow.users.sql.run(Statement("INSERT INTO refers VALUES (:x)"), x=CANARY)


async def bad_data(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT CAST(CAST(:x AS text) AS uuid)"), x=CANARY)


async def bad_data_after_another_statement(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT 1"))
    await uow.users.sql.fetch(Statement("SELECT CAST(CAST(:x AS text) AS uuid)"), x=CANARY)


async def bad_argument(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT CAST(:x AS uuid)"), x=CANARY)


async def bad_argument_after_another_statement(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT 1"))
    await uow.users.sql.fetch(Statement("SELECT CAST(:x AS uuid)"), x=CANARY)


async def cursor(uow: UnitOfWork) -> None:
    await uow.users.sql.fetch(Statement("SELECT 1"))
    async for _ in uow.users.sql.stream(Statement("SELECT CAST(CAST(:x AS text) AS uuid)"), x=CANARY):
        pass


async def mapped_object(uow: UnitOfWork) -> None:
    uow.session.add(User(email=CANARY, full_name="", hashed_password=CANARY))
    await uow.session.flush()


async def mapped_value(uow: UnitOfWork) -> None:
    uow.session.add(User(email=CANARY, full_name="x", hashed_password="x", role=CANARY))  # type: ignore[arg-type]
    await uow.session.flush()


async def parameters(uow: UnitOfWork) -> None:
    await (await uow.session.connection()).execute(text("SELECT 1 / (length(:x) * 0)"), {"x": CANARY})


async def field_of_a_table(uow: UnitOfWork) -> None:
    await uow.users.create(UserBase.model_construct(email=CANARY, full_name=CANARY), hashed_password="x")


CAUSES: dict[str, Cause] = {
    one.__name__: one
    for one in (
        unique, check, check_after_another_statement, missing, foreign_key, foreign_key_at_the_commit, bad_data,
        bad_data_after_another_statement,
        bad_argument, bad_argument_after_another_statement, cursor, mapped_object, mapped_value, parameters,
        field_of_a_table,
    )
}  # fmt: skip
EACH = pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)


def assert_no_canary(*texts: object) -> None:
    for one in texts:
        assert CANARY not in str(one), one
        assert str(NUMBER) not in str(one), one


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the process logs, once as JSON and once for people, all levels and loggers."""
    stream, root = io.StringIO(), logging.getLogger()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(stream)]
    handlers[0].setFormatter(JsonLines("test"))
    handlers[1].setFormatter(ConsoleLines("test", colors=False))
    before = root.level
    for one in handlers:
        root.addHandler(one)
    root.setLevel(logging.INFO)
    yield stream
    root.setLevel(before)
    for one in handlers:
        root.removeHandler(one)


async def raised(database: Database, cause: Cause) -> BaseException:
    try:
        async with UnitOfWork(database.write) as uow:
            await cause(uow)
            await uow.commit()
    except Exception as error:  # noqa: BLE001  (each cause raises another one)
        return error
    raise AssertionError("nothing was raised")


@EACH
async def test_no_way_to_say_an_error_shows_the_row(database: Database, cause: Cause, logged: io.StringIO) -> None:
    error = await raised(database, cause)
    if isinstance(error, SqlError):
        # Also if it is not our code that prints it.
        assert_no_canary(error, repr(error), "".join(traceback.format_exception(error)))
    log = logging.getLogger("somewhere")
    log.error("it failed: %s, %r", error, error, extra={"error": error})
    log.error("it failed", exc_info=error)
    assert type(error).__name__ in logged.getvalue()
    entry = history_entry(error, 1, (await _now(database)), FailureReason.handler_error)
    assert_no_canary(logged.getvalue(), describe(error), entry)
    assert_no_canary(_summary(error) if isinstance(error, Exception) else "")


async def _now(database: Database) -> Any:
    (found,) = await rows(database, "SELECT now()")
    return found


async def test_an_operator_sees_the_sqlstate_the_constraint_and_the_table(
    database: Database, logged: io.StringIO
) -> None:
    error = await raised(database, unique)
    assert isinstance(error, DBAPIError)
    # The code that needs to know which row it is can still find out.
    assert CANARY in detail_of(error)
    logging.getLogger("somewhere").error("it failed", exc_info=error)
    said = logged.getvalue()
    for fact in ('"sqlstate": "23505"', '"constraint": "uq_users_email_lower"', '"table": "users"', "duplicate key"):
        assert fact in said, said
    assert "bad data" not in str(await raised(database, bad_data))
    assert "invalid input syntax for type uuid" in str(await raised(database, bad_data))


@EACH
async def test_a_request_neither_logs_nor_answers_with_the_row(
    settings: Settings, cause: Cause, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(uow: UnitOfWork, *_: object, **__: object) -> None:
        await cause(uow)

    monkeypatch.setattr(users, "register", fails)
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    sent = {"email": "a@example.com", "full_name": "A", "password": "correct horse battery"}
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        answered = await client.post("/v1/users", json=sent)
    assert answered.status_code in (409, 422, 500), answered.text
    assert_no_canary(answered.text, logged.getvalue())


async def test_a_reply_that_does_not_fit_its_schema_is_not_logged(
    settings: Settings, logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrong(*_: object, **__: object) -> Any:
        return User(id=CANARY, email=CANARY, full_name="x", hashed_password="x", version=1)  # type: ignore[arg-type]

    monkeypatch.setattr(users, "register", wrong)
    app = create_app(settings)
    seen: list[BaseException] = []

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except ResponseValidationError as error:
            # What a server logs.
            logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
            seen.append(error)

    sent = {"email": "a@example.com", "full_name": "A", "password": "correct horse battery"}
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(outside), base_url="http://api.test") as client,
    ):
        answered = await client.post("/v1/users", json=sent)
    assert (answered.status_code, len(seen)) == (500, 1)
    assert "validation error" in logged.getvalue()
    assert_no_canary(answered.text, logged.getvalue())


@EACH
@pytest.mark.parametrize("most", [1, 5], ids=["buried", "retried"])
async def test_a_worker_neither_logs_nor_stores_the_row(
    database: Database, cause: Cause, most: int, logged: io.StringIO
) -> None:
    async def fails(uow: UnitOfWork, _: Sequence[Claimed[Tick]]) -> None:
        await cause(uow)

    await append(database, Tick(name="a"), Tick(name="b"))
    policy = LATER if most > 1 else RetryPolicy(max_attempts=1, base=1.0, cap=1.0)
    processor = Processor[UnitOfWork](
        lambda: UnitOfWork(database.write), [Subscription(Tick, fails)], retry=policy, batch_size=10
    )
    outcome = await processor.run_once()
    assert outcome.retried + outcome.buried == 2, outcome
    stored = [
        *await rows(database, "SELECT row::text FROM outbox AS row"),
        *await rows(database, "SELECT row::text FROM dead_letters AS row"),
        *await rows(database, "SELECT row::text FROM outbox_errors AS row"),
    ]
    assert stored
    assert_no_canary(logged.getvalue(), *stored)


def test_a_payload_that_cannot_be_read_is_not_repeated() -> None:
    with pytest.raises(Exception, match=r"not a valid 'test\.tick'.*number") as failed:
        Registry([Tick])["test.tick"].reader()(f'{{"name": "x", "number": "{CANARY}"}}', 1)
    assert_no_canary(failed.value, describe(failed.value))


@pytest.mark.usefixtures("_settings_of_commands")
@EACH
def test_a_command_does_not_print_the_row(cause: Cause, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception) as failed:
        in_one(cause)
    if isinstance(failed.value, CommandError):
        assert_no_canary(failed.value, reason_of(failed.value.__cause__ or failed.value))
    elif not isinstance(failed.value, SqlError):
        # What Python prints of Pydantic's errors is what `__main__` makes of them: see `services/cli/main.py`.
        assert isinstance(failed.value, ValueError), failed.value
    assert_no_canary(*capsys.readouterr())


def test_the_embedded_server_does_not_log_rows(tmp_path: Any) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("SET log_min_duration_statement = 0")
            connection.execute("CREATE TABLE kept (word text PRIMARY KEY CHECK (word <> 'no'), number int NOT NULL)")
            connection.execute("INSERT INTO kept VALUES (%s, 1)", [CANARY])
            for number in (1, None):
                with pytest.raises(psycopg.IntegrityError, match=CANARY):
                    connection.execute("INSERT INTO kept VALUES (%s, %s)", [CANARY, number])
        said = server.log.read_text()
    assert "duplicate key" in said
    assert "INSERT INTO kept VALUES ($1" in said
    assert_no_canary(said)
