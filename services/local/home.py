"""The data folder of `waybill up`: one user at a time, a secret key that stays, a place for logs."""

import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.cli.console import CommandError, say
from services.cli.facts import DEFAULT_DATA_DIR, FILE_NAME
from services.cli.files import keep_secret

MARKER = "waybill.marker"
_MARKER_TEXT = """\
This folder was empty when `waybill up` made it its own; the databases, keys and logs in it are of its making.
`waybill clean-data --data-dir FOLDER` removes them.
"""

ENTRIES = ("postgres", "redis", "logs", "secret_key", "secret_key.new", FILE_NAME, f"{FILE_NAME}.new", "lock", MARKER)
"""All that we put into the folder, in the order in which it is removed: until the end it is known as ours."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder, held by us."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def secret_key(self) -> str:
        """The key that signs tokens: made once, so that they stay valid over a restart."""
        return keep_secret(self.path / "secret_key", 48, say, "everyone has to sign in again")


@contextmanager
def hold(path: Path) -> Iterator[Home]:
    """Hold the folder, made where it does not exist, until the block ends or we do.

    Raises `CommandError` where it is somebody else's, another `waybill up` holds it or it cannot be written.
    """
    path = path.absolute()
    try:
        _make_ours(path)
        (path / "logs").mkdir(mode=0o700, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CommandError(f"{path} cannot be used as the data folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            raise CommandError(
                f"{path} is in use by another `waybill up` (process {holder}). "
                "Stop that one, or give another folder with --data-dir"
            ) from None
        os.truncate(lock, 0)
        # Only for the message above; the lock holds without it, even on a full disk.
        with suppress(OSError):
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield Home(path)
    finally:
        os.close(lock)


def is_ours(path: Path) -> bool:
    """Whether a `waybill up` made this folder its own. Folders from before there was a marker hold nothing else."""
    return (path / MARKER).is_file() or (
        (path / FILE_NAME).is_file() and all(entry.name in ENTRIES for entry in path.iterdir())
    )


def _make_ours(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        if objection := _objection(path):
            raise CommandError(
                f"{path} cannot be the data folder: {objection}. Give a folder of its own, one that does not exist yet "
                f"or is empty, for example --data-dir {shlex.quote(str(path / DEFAULT_DATA_DIR))}"
            ) from None
    # Before anything else: another `waybill up` that starts now sees an empty folder or a marked one. The file's
    # existence is the mark; its text is for people.
    if not (path / MARKER).exists():
        (path / MARKER).write_text(_MARKER_TEXT)


def _objection(path: Path) -> str | None:
    """Why a folder that exists is not to be made ours."""
    names = sorted((entry.name for entry in path.iterdir()), key=lambda name: (name in ENTRIES, name))
    if path.stat().st_mode & stat.S_ISVTX:
        return "everybody on this machine shares it"
    if is_ours(path):
        return None
    if names:
        return f"it holds other files ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    if Path.cwd().is_relative_to(path.resolve()):
        return "it is the folder you work in"
    return None
