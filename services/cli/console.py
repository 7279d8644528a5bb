"""Output and errors of the command line."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from pydantic_core import ValidationError

from services.errors import CannotStart

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Permanent errors. After any other, such as a full disk, the next line may get through."""


REFUSED = 1
"""Exit code: it was refused, or something was not found, is unhealthy or differs. That of most errors."""

NOT_FINISHED = 3
"""Exit code of commands whose 1 is a result: there is none, because the command could not start or finish."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell."""


class CommandError(Exception):
    """The command cannot continue; the message says why and what to do. Exit code 1, no traceback."""


_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def harmless(text: str) -> str:
    """The text with control characters escaped, as in JSON: what customers write must not control a terminal."""
    return text.translate(_CONTROLS)


def say(message: str = "") -> bool:
    """Print a line without wrapping it, so that it can be copied. Returns False once no one reads what is printed.

    It is not an error if the output cannot be written (the terminal is closed, the pipe's reader is gone, the disk is
    full): the servers still have to be supervised and stopped in order.
    """
    try:
        typer.echo(harmless(message))
    except OSError as error:
        if error.errno in _GONE:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
            return False
    return True


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM are the usual ways to end this block, in the main thread, and no errors."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


_hints: list[str] = []
"""What `plain_errors` adds to an error about the settings."""


@contextmanager
def hinting(hint: str) -> Iterator[None]:
    """In the block, this line ends each error about the settings, or about what cannot be reached with them."""
    _hints.append(hint)
    try:
        yield
    finally:
        _hints.remove(hint)


@contextmanager
def plain_errors(exit_code: int = REFUSED) -> Iterator[None]:
    """Turn errors that the user can act on into a message and an exit code."""
    try:
        yield
    except ValidationError as error:
        # Imported here: `waybill --help` reads no settings.
        from services.settings import explain

        _fail("\n".join((explain(error), *(_hints if error.title == "Settings" else ()))), exit_code)
    except CannotStart as error:
        _fail("\n".join((str(error), *_hints)), exit_code)
    except CommandError as error:
        _fail(str(error), exit_code)


def _fail(message: str, exit_code: int) -> None:
    typer.secho("waybill: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)
