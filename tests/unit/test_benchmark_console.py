"""The benchmark of the console asks for every page, every read of operators, and every command that reads."""

import re
from collections.abc import Iterator
from typing import Any

from benchmarks.console import reads
from services.app import create_app
from services.cli.main import COMMANDS, load
from services.console.site import PAGES
from services.settings import Environment, Settings


def asked() -> set[str]:
    """The paths that are asked for, with `{}` for each parameter."""
    return {re.sub(r"{\w+}|kind%20\d", "{}", one.path.partition("?")[0]) for one in [*reads.pages(), *reads.twins()]}


def plain(path: str) -> str:
    return re.sub(r"{\w+}", "{}", path)


def test_each_page_that_reads_is_measured() -> None:
    paths = {plain(route.path): route.methods for router in PAGES for route in router.routes}  # type: ignore[attr-defined]
    assert {path for path, methods in paths.items() if "GET" in methods} - asked() == set()


def test_each_read_of_operators_is_measured() -> None:
    settings = Settings(
        _env_file=None,
        environment=Environment.development,
        database_url="postgresql://somewhere/db",
        redis_url="redis://somewhere",
        secret_key="x" * 48,
    )
    paths = create_app(settings).openapi()["paths"]
    found = {plain(path) for path, methods in paths.items() if path.startswith("/v1/operations/") and "get" in methods}
    assert found - asked() - reads.SEEN_ELSEWHERE == set()


def commands(command: Any, name: str) -> Iterator[str]:
    parts = getattr(command, "commands", None)
    if parts is None:
        yield name
        return
    for part, one in parts.items():
        yield from commands(one, f"{name} {part}")


def test_each_command_that_reads_is_measured() -> None:
    known = {name for command in COMMANDS for name in commands(load(command), command)}
    assert reads.OTHER_COMMANDS - known == set()
    measured = {name for name in known for line in reads.COMMANDS if f"{line} ".startswith(f"{name} ")}
    assert known - measured - reads.OTHER_COMMANDS == set()
