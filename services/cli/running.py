"""A running `waybill up`: how every command finds it, and uses the same servers."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import typer

from services.cli.console import CommandError, hinting
from services.cli.facts import DEFAULT_DATA_DIR, Facts, read_facts

LOCK = "lock"
"""The file in the data folder that a `waybill up` locks as long as it runs, with its process id."""

_OF_OWNER = "WAYBILL_MIGRATION_"


@dataclass(frozen=True, slots=True)
class Running:
    """A `waybill up` that has started, and the process id of its supervisor."""

    facts: Facts
    pid: int


def holder(data_dir: Path) -> int | None:
    """The process id of the `waybill up` that holds the folder, even one that is starting or stopping; None if none.

    The kernel frees the lock when its holder ends, so this is never a process that only has the same id. Raises
    `CommandError` if the holder could not write its id.
    """
    # Imported here: not every system has it, nor a `waybill up`.
    import fcntl

    try:
        lock = os.open(data_dir / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CommandError(f"{data_dir / LOCK}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        written = os.pread(lock, 20, 0).strip()
        if not written.isdigit():
            raise CommandError(
                f"a `waybill up` runs in {data_dir.absolute()}, but it could not write its process id"
            ) from None
        return int(written)
    finally:
        os.close(lock)
    return None


def find_running(data_dir: Path) -> Running | None:
    """The `waybill up` that runs in this folder; None if there is none, or it is still starting or already stopping.

    Raises `CommandError` if its files cannot be read.
    """
    pid = holder(data_dir)
    facts = None if pid is None else read_facts(data_dir)
    # Until it has started, these are the facts of the run before.
    if pid is None or facts is None or facts.pids.supervisor != pid or not facts.api_url:
        return None
    return Running(facts, pid)


def running_in(data_dir: Path) -> Running:
    """The `waybill up` that runs in this folder, which standard error names. Raises `CommandError` if there is none."""
    found = find_running(data_dir)
    if found is None:
        state = "starting or stopping" if holder(data_dir) is not None else "not running"
        raise CommandError(f"`waybill up` is {state} in {data_dir.absolute()}")
    tell(found, data_dir)
    return found


def tell(found: Running, data_dir: Path) -> None:
    """Say which one is used, on standard error."""
    typer.echo(f"Using the `waybill up` in {data_dir.absolute()} (process {found.pid}).", err=True)


@contextmanager
def using(data_dir: Path | None, *, as_process: bool = False) -> Iterator[None]:
    """In the block, the settings are those of the `waybill up` in `data_dir`.

    If that is None, what is set in the environment or in `.env` stays, and a `waybill up` in the default folder is used
    only if no database is set; if there is none, nothing changes. `as_process` leaves out the addresses with the owner
    of the tables, which no process that serves may have. Raises `CommandError`.
    """
    chosen = _settings_of(data_dir)
    if as_process:
        chosen = {name: value for name, value in chosen.items() if not name.startswith(_OF_OWNER)}
    with _settings(chosen), _hint_of(chosen):
        yield


@contextmanager
def using_found(found: Running) -> Iterator[None]:
    """In the block, the settings are those of this `waybill up`, whatever is set."""
    with _settings(_without_contradictions(found)):
        yield


def _settings_of(data_dir: Path | None) -> dict[str, str]:
    from services.settings import given_settings

    if data_dir is not None:
        return _without_contradictions(running_in(data_dir))
    given = given_settings()
    found = None if given.get("database_url") else find_running(DEFAULT_DATA_DIR)
    # Settings for production do not reach a database for trying out by accident.
    if found is None or given.get("environment", found.facts.environment) != found.facts.environment:
        return {}
    tell(found, DEFAULT_DATA_DIR)
    kept = {f"WAYBILL_{name.upper()}" for name in given}
    return {name: value for name, value in _without_contradictions(found).items() if name not in kept}


def _without_contradictions(found: Running) -> dict[str, str]:
    """Its settings. A file with the key, besides a key that is set, would be refused."""
    from services.settings import given_settings

    chosen = found.facts.variables()
    if given_settings().get("secret_key"):
        chosen.pop("WAYBILL_SECRET_KEY_FILE", None)
    return chosen


def _hint_of(chosen: Mapping[str, str]) -> AbstractContextManager[None]:
    from services.settings import given_settings

    if chosen or given_settings().get("database_url"):
        return nullcontext()
    where = DEFAULT_DATA_DIR.absolute()
    return hinting(f"WAYBILL_DATABASE_URL is not set, and no `waybill up` is running in {where}.")


@contextmanager
def _settings(chosen: Mapping[str, str]) -> Iterator[None]:
    """Set these variables in the block, instead of files that hold their values."""
    from services.settings import get_settings

    names = {*chosen, *(f"{name}_FILE" for name in chosen)}
    before = {name: os.environ[name] for name in names if name in os.environ}
    for name in before:
        del os.environ[name]
    os.environ.update(chosen)
    get_settings.cache_clear()
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)
        os.environ.update(before)
        get_settings.cache_clear()
