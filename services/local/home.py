"""The data folder of `waybill up`: a lock, a persistent secret key, and a folder for logs."""

import fcntl
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.cli.console import CommandError, say
from services.cli.facts import DEFAULT_DATA_DIR, FILE_NAME
from services.cli.files import keep_secret
from services.cli.running import LOCK

MARKER = "waybill.marker"
_MARKER_TEXT = """\
`waybill up` created the databases, keys and logs in this folder, which was empty before.
`waybill clean-data --data-dir FOLDER` removes them.
"""

ENTRIES = ("postgres", "redis", "logs", "secret_key", "secret_key.new", FILE_NAME, f"{FILE_NAME}.new", LOCK, MARKER)
"""Everything we put into the folder, in order of removal: the folder is recognized as ours until the end."""


_TRIES, _TRY_SECONDS = 10, 0.05


@dataclass(frozen=True, slots=True)
class Home:
    """The folder, while we hold it."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def secret_key(self) -> str:
        """The key that signs tokens: created once, so that they stay valid across restarts."""
        return keep_secret(self.secret_key_file, 48, say, "everyone has to sign in again")

    @property
    def secret_key_file(self) -> Path:
        return self.path / "secret_key"


@contextmanager
def hold(path: Path) -> Iterator[Home]:
    """Hold the folder, created if it does not exist, until the block ends or we exit.

    Raises `CommandError` if it has other contents, another `waybill up` holds it, or it cannot be written.
    """
    path = path.absolute()
    try:
        _make_ours(path)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CommandError(f"cannot use {path} as the data folder: {error.strerror}") from error
    try:
        if not _locked(lock):
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            raise CommandError(
                f"{path} is in use by another `waybill up` (process {holder}). "
                "Stop that one with `waybill down`, or choose another folder with --data-dir"
            )
        os.truncate(lock, 0)
        # For the message above and for `waybill down`; the lock works without it, even on a full disk.
        with suppress(OSError):
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield Home(path)
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    """Take the lock. Commands hold it for a moment to find out whether it is free; they are waited for."""
    for left in reversed(range(_TRIES)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(_TRY_SECONDS)
        else:
            return True
    return False


def is_ours(path: Path) -> bool:
    """Whether this is a data folder of `waybill up`. Older ones have no marker, and contain nothing else."""
    return (path / MARKER).is_file() or (
        (path / FILE_NAME).is_file() and all(entry.name in ENTRIES for entry in path.iterdir())
    )


def _make_ours(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if objection := _objection(path):
            raise CommandError(
                f"cannot use {path} as the data folder: {objection}. Choose a separate folder that does not exist yet "
                f"or is empty, for example --data-dir {shlex.quote(str(path / DEFAULT_DATA_DIR))}"
            ) from None
    # Before anything else, so that another `waybill up` that starts now sees an empty folder or a marked one. Only the
    # file's existence matters; its text is for people.
    if not (path / MARKER).exists():
        (path / MARKER).write_text(_MARKER_TEXT)


def _objection(path: Path) -> str | None:
    """Why we must not use an existing folder; None if we may."""
    names = sorted((entry.name for entry in path.iterdir()), key=lambda name: (name in ENTRIES, name))
    if path.stat().st_mode & stat.S_ISVTX:
        return "all users of this machine share it"
    if is_ours(path):
        return None
    if names:
        return f"it contains other files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    if Path.cwd().is_relative_to(path.resolve()):
        return "you are working in it"
    return None
