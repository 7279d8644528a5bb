"""The data folder of `waybill up`: one user at a time, a secret key that stays, a place for logs."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.cli.console import CommandError


@dataclass(frozen=True, slots=True)
class Home:
    """The folder, held by us."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def secret_key(self) -> str:
        """The key that signs tokens: made once, so that they stay valid over a restart."""
        kept = self.path / "secret_key"
        if not kept.exists():
            draft = kept.with_name("secret_key.new")
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_urlsafe(48))
            draft.replace(kept)
        return kept.read_text()


@contextmanager
def hold(path: Path) -> Iterator[Home]:
    """Hold the folder, made where it does not exist, until the block ends or we do.

    Raises `CommandError` where another `waybill up` holds it or it cannot be written.
    """
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        (path / "logs").mkdir(exist_ok=True)
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
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield Home(path)
    finally:
        os.close(lock)
