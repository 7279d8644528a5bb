"""A primary and its streaming replica, made with pg_basebackup."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote

import psycopg

from services.local.embedded import EmbeddedPostgres, child
from services.local.embedded.ports import LOOPBACK
from services.local.embedded.postgres import SUPERUSER
from tests.processes import wait_until

_OF_BOTH = {
    "max_connections": "100",
    "wal_level": "replica",
    "synchronous_commit": "on",
    "max_wal_senders": "8",
    # A replica that is not there must not keep the primary's log from being recycled, nor lose its place meanwhile.
    "wal_keep_size": "256MB",
    # What is in the way of replaying is cancelled soon, and a lost primary is looked for soon.
    "max_standby_streaming_delay": "200ms",
    "wal_retrieve_retry_interval": "100ms",
    "hot_standby_feedback": "off",
}


class Standby(EmbeddedPostgres):
    """A streaming replica of `primary`, which must run when it is first started."""

    def __init__(self, data: Path, primary: EmbeddedPostgres) -> None:
        super().__init__(data, settings=_OF_BOTH, durable=False)
        self._primary = primary

    def _prepare(self) -> None:
        if not self.cluster.exists():
            self._copy()
        super()._prepare()

    def _copy(self) -> None:
        primary = self._primary
        assert primary.binaries is not None
        self.password = primary.password
        (self.data / "password").write_text(self.password)
        source = f"host={LOOPBACK} port={primary.port} user={SUPERUSER} password={quote(self.password)}"
        copied = child.run(
            [
                primary.binaries.folder / "pg_basebackup",
                f"--dbname={source}",
                f"--pgdata={self.cluster}",
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--no-sync",
            ],
            cwd=self.data,
            environment=self._environment(),
        )
        assert copied.returncode == 0, copied.stderr
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def run(self, statement: LiteralString) -> Any:
        """The first value that the statement returns."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute(statement).fetchone()
        return None if found is None else found[0]

    def pause(self) -> None:
        """Stop replaying: from now on it falls behind."""
        self.run("SELECT pg_wal_replay_pause()")
        wait_until(lambda: self.run("SELECT pg_get_wal_replay_pause_state()") == "paused", "the pause")

    def resume(self) -> None:
        self.run("SELECT pg_wal_replay_resume()")

    def kill(self) -> None:
        """SIGKILL, as when the machine goes away; all its processes are gone on return."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def promote(self) -> None:
        assert self.run("SELECT pg_promote(true, 60)") is True

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)


@contextmanager
def primary_server(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server that replicas can follow."""
    with EmbeddedPostgres(folder, settings=_OF_BOTH, durable=False) as primary:
        yield primary


@contextmanager
def standby_of(primary: EmbeddedPostgres, folder: Path) -> Iterator[Standby]:
    """A running replica, with everything that the primary has now; stopped and removed on exit."""
    standby = Standby(folder, primary)
    try:
        standby.start()
        yield standby
    finally:
        standby.remove()
