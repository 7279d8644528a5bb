"""The format of log lines; a failure that may occur many times a second is logged once, and then once a minute."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import TypeAlias
from uuid import UUID

import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from services.api.headers import Protection
from services.api.middleware import RequestMiddleware
from services.api.refusals import Refusals
from services.api.request_times import RequestTimes
from services.logs import ConsoleLines, RateLimitedLogger, Repeats, bind, configure_logging, unbind
from services.settings import Environment, LogFormat, Settings

Configured: TypeAlias = Callable[[LogFormat], io.StringIO]
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_is_logged_and_the_next_only_after_a_minute_with_their_number() -> None:
    clock = Clock()
    repeats = Repeats(60.0, clock)
    assert [repeats.left_out("a") for _ in range(4)] == [0, None, None, None]
    clock.now += 59
    assert repeats.left_out("a") is None
    clock.now += 1
    assert [repeats.left_out("a") for _ in range(2)] == [4, None]
    clock.now += 60
    assert repeats.left_out("a") == 1


def test_messages_of_another_kind_are_logged_immediately(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = RateLimitedLogger(logging.getLogger("services.test"), Repeats(60.0, clock))
    with caplog.at_level(logging.WARNING, "services.test"):
        for number in range(100):
            log.warning("no beat, next try in %d s: %r", number, OSError(f"attempt {number}"))
        log.warning("no beat, next try in %d s: %r", 1, ValueError("a fault of ours"))
        log.warning("the doorbell is silent: %r", OSError("attempt"))
        clock.now += 60
        log.warning("no beat, next try in %d s: %r", 7, OSError("the last one"))
    assert caplog.messages == [
        "no beat, next try in 0 s: OSError('attempt 0')",
        "no beat, next try in 1 s: ValueError('a fault of ours')",
        "the doorbell is silent: OSError('attempt')",
        "no beat, next try in 7 s: OSError('the last one') (and 99 more since this was last logged)",
    ]


@pytest.fixture
def configured() -> Iterator[Configured]:
    """Configures logging as a worker does and returns what it writes; restores everything afterwards."""
    root, arq = logging.getLogger(), logging.getLogger("arq")
    handlers, levels = root.handlers[:], (root.level, arq.level)

    def configure(log_format: LogFormat) -> io.StringIO:
        written = io.StringIO()
        with redirect_stderr(written):
            configure_logging(
                Settings(_env_file=None, environment=Environment.development, log_format=log_format), "worker"
            )
        return written

    yield configure
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    arq.setLevel(levels[1])


def test_a_line_is_one_json_object_with_its_fields(configured: Configured) -> None:
    written = configured(LogFormat.json)
    logging.getLogger("another.package").warning("%d of %s", 3, "é\n")
    logging.getLogger("worker.jobs").info("expired", extra={"holds": 3, "named": [{"id": UUID(int=7)}]})
    logging.getLogger("worker.jobs").debug("not on this level")
    first, second = map(json.loads, written.getvalue().splitlines())
    assert TIMESTAMP.fullmatch(first.pop("timestamp"))
    assert TIMESTAMP.fullmatch(second.pop("timestamp"))
    assert first == {"event": "3 of é\n", "process": "worker", "level": "warning", "logger": "another.package"}
    assert second == {
        "event": "expired",
        "process": "worker",
        "level": "info",
        "logger": "worker.jobs",
        "holds": 3,
        "named": [{"id": f"UUID('{UUID(int=7)}')"}],
    }


def test_a_traceback_is_a_field_of_its_line_without_local_variables(configured: Configured) -> None:
    written = configured(LogFormat.json)
    password = "a secret"
    try:
        raise ValueError(len(password))
    except ValueError:
        logging.getLogger("services").exception("it broke")
    line = json.loads(written.getvalue())
    assert line["event"] == "it broke"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("\nValueError: 8")
    assert password not in line["exception"]


class EndsAll(BaseException):
    """No `Exception`."""


class Unreadable(Exception):
    def __str__(self) -> str:
        raise EndsAll

    __repr__ = __str__


@pytest.mark.parametrize("as_what", [LogFormat.json, LogFormat.console])
def test_a_line_about_what_cannot_be_shown_is_written(configured: Configured, as_what: LogFormat) -> None:
    said = configured(as_what)
    logging.getLogger("test").error("failed: %r", Unreadable(), extra={"cause": Unreadable()}, exc_info=Unreadable())
    RateLimitedLogger(logging.getLogger("test")).warning("limited: %s", Unreadable())
    assert "failed: <Unreadable, whose text cannot be shown" in said.getvalue()
    assert "limited: <Unreadable, whose text cannot be shown: EndsAll>" in said.getvalue()


async def test_bound_fields_are_in_the_lines_of_the_task_and_of_those_it_starts(configured: Configured) -> None:
    written = configured(LogFormat.json)
    log = logging.getLogger("services")

    async def say(message: str) -> None:
        log.info(message)

    outer = bind(request_id="r1")
    inner = bind(caller=5)
    await asyncio.create_task(say("both"))
    unbind(inner)
    log.info("one")
    unbind(outer)
    log.info("none")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["event"], line.get("request_id"), line.get("caller")) for line in lines] == [
        ("both", "r1", 5),
        ("one", "r1", None),
        ("none", None, None),
    ]


async def test_what_a_request_logs_has_its_id(configured: Configured) -> None:
    written = configured(LogFormat.json)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        logging.getLogger("services").info("inside")
        await PlainTextResponse("done")(scope, receive, send)

    transport = httpx2.ASGITransport(RequestMiddleware(app, 0, RequestTimes(), Protection(), Refusals()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        reply = await client.get("/", headers={"X-Request-Id": "r1"})
    assert reply.headers["X-Request-Id"] == "r1"
    logging.getLogger("services").info("outside")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line.get("request_id") for line in lines if line["logger"] == "services"] == ["r1", None]


def test_lines_for_people_end_with_their_fields_and_have_a_traceback_below(configured: Configured) -> None:
    written = configured(LogFormat.console)
    logging.getLogger("worker.jobs").info("expired", extra={"holds": 3, "error": "two words", "by": "me"})
    logging.getLogger("services").error("it broke", exc_info=ValueError("why"))
    lines = written.getvalue().splitlines()
    assert [TIMESTAMP.sub("NOW", line) for line in lines] == [
        "NOW [info     ] expired                        [worker.jobs] by=me error='two words' holds=3 process=worker",
        "NOW [error    ] it broke                       [services] process=worker",
        "ValueError: why",
    ]


def test_levels_are_coloured_on_a_terminal_only() -> None:
    record = logging.makeLogRecord({"name": "services", "msg": "hot", "levelno": 30, "levelname": "WARNING"})
    assert "[\x1b[33mwarning  \x1b[0m] hot" in ConsoleLines("api", colors=True).format(record)
    assert "[warning  ] hot" in ConsoleLines("api", colors=False).format(record)
