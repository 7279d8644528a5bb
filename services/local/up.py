"""`waybill up`: everything on this machine, in one command, until Ctrl-C."""

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError

from services.cli.console import CommandError, plain_errors, say
from services.cli.database_roles import Roles, prepare
from services.cli.facts import DEFAULT_DATA_DIR, FILE_NAME, Facts, ProcessIds, read_facts
from services.cli.files import keep_secret
from services.cli.migrate import Which, check_database, migrate_database, upgrade_to_head
from services.local.announcement import announcement
from services.local.consent import agree_to_change
from services.local.embedded import EmbeddedPostgres, EmbeddedRedis, PortTaken, child
from services.local.embedded.ports import LOOPBACK, next_free_port
from services.local.home import Home, hold
from services.local.supervisor import Part, Program, Stop, Supervisor, how_it_ended
from services.settings import Environment, Settings, given_settings
from services.sql import sqlstate

DATABASE_NAME = "waybill"
ANALYTICS_NAME = "waybill_analytics"
"""The second database of the same server, for reports."""
OWNER, APPLICATION, READER = "waybill_owner", "waybill_app", "waybill_read"
"""The roles of our own PostgreSQL. Its superuser only creates them."""
READY_SECONDS = 60.0
_PORTS_TRIED = 20
_NOT_OUR_FAULT = ("08", "53", "57", "58")
"""SQLSTATE classes: the connection, resources such as the disk, operator intervention, the system."""


def up(
    data_dir: Annotated[Path, typer.Option(help="The folder for data, logs and waybill.json.")] = DEFAULT_DATA_DIR,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The API's port, or the next free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=0, max=64, help="The number of worker processes.")] = 1,
    seed: Annotated[
        bool, typer.Option("--seed", help="Change a database of yours without asking: migrate it, add demo users.")
    ] = False,
    host: Annotated[str, typer.Option(hidden=True)] = LOOPBACK,
) -> None:
    """Run everything on this machine: PostgreSQL, Redis, the API and workers. Ctrl-C stops it; the data is kept.

    If WAYBILL_DATABASE_URL or WAYBILL_REDIS_URL is set, that server is used instead of the embedded one. Reports use a
    second database of the embedded server, or that of WAYBILL_ANALYTICS_URL; if that is set but empty, they are off.
    Before it changes a database of yours, it asks; without a terminal it needs --seed.
    """
    with plain_errors():
        if host != LOOPBACK:
            raise CommandError(
                f"`waybill up` serves this machine only, on {LOOPBACK}: its users are for trying out. To serve others, "
                "run `waybill api --host ADDRESS` with settings of your own, as docs/how-to/production.md says"
            )
        given = given_settings()
        agree_to_change(given, agreed=seed)
        with hold(data_dir) as home:
            _House(home, port, workers, given).run()


class _House:
    """One run of `waybill up`."""

    def __init__(self, home: Home, port: int, workers: int, given: Mapping[str, Any]) -> None:
        self.home = home
        self.port = port
        self.workers = workers
        self.stop = Stop()
        self.supervisor = Supervisor(self.stop, self._write_facts)
        self.postgres: EmbeddedPostgres | None = None
        self.redis: EmbeddedRedis | None = None
        self.api: Program | None = None
        self.worker_programs: list[Program] = []
        self.facts: Facts | None = None
        self.read_url: str | None = None
        # What the user has set overrides our own choices.
        self.given = given

    def run(self) -> None:
        self.stop.listen()
        try:
            self._start()
            if not self.stop.wanted:
                self._announce()
                self.supervisor.watch()
        except KeyboardInterrupt:
            say("Interrupted.")
        finally:
            self.stop.stopping = True
            say("\nStopping: workers and API first, then the servers ...")
            self.supervisor.stop_all()
            self.supervisor.tell_of_changes()
            say(f"Stopped. The data is kept in {self.home.path}")

    def _start(self) -> None:
        settings = self._start_servers()
        say("Upgrading the databases to the newest schema ...")
        check_database(settings, migrated=False)
        try:
            self._prepare_database(settings)
        except OSError as error:
            raise CommandError(f"cannot prepare the database: {error}") from error
        except DBAPIError as error:
            if (sqlstate(error) or "")[:2] not in _NOT_OUR_FAULT:
                raise
            raise CommandError(f"cannot prepare the database: {error.orig}") from error
        if self.stop.wanted:
            return
        self._start_programs()
        self._wait_until_ready()

    def _prepare_database(self, settings: Settings) -> None:
        upgrade_to_head()
        if settings.analytics_url is not None:
            migrate_database(settings, Which.analytics)
        self.facts = self._first_facts(settings)
        if settings.is_development:
            # Imported here: this loads all domains, which nothing else in this process needs.
            from services.local.seed import seed

            # A password that cannot be saved must not be committed.
            asyncio.run(seed(settings, self.facts, self._write_facts))

    def _start_servers(self) -> Settings:
        chosen = {"WAYBILL_WORKER_PROCESSES": str(self.workers)}
        if not self.given.get("environment"):
            chosen["WAYBILL_ENVIRONMENT"] = Environment.development.value
        if not self.given.get("secret_key"):
            chosen["WAYBILL_SECRET_KEY"] = self.home.secret_key()
        if not self.given.get("database_url"):
            self.postgres = EmbeddedPostgres(self.home.path / "postgres", say=say)
            self._start_server(self.postgres, 5432)
            chosen |= self._make_databases(self.postgres)
        if not self.given.get("redis_url"):
            self.redis = EmbeddedRedis(self.home.path / "redis", say=say)
            self._start_server(self.redis, 6379)
            chosen["WAYBILL_REDIS_URL"] = self.redis.url()
        # For the migrations and the seed in this process, and for the children.
        os.environ.update(chosen)
        return Settings()

    def _make_databases(self, postgres: EmbeddedPostgres) -> dict[str, str]:
        """Create what is missing: databases, and their roles. Returns the settings with their addresses."""
        passwords = {
            role: keep_secret(postgres.data / f"password.{role}", 24, say, f"the role {role} gets a new password")
            for role in (OWNER, APPLICATION, READER)
        }

        def url(role: str, database: str) -> URL:
            return make_url(postgres.url(database)).set(username=role, password=passwords[role])

        # An empty value turns reports off.
        names = {"": DATABASE_NAME} | ({} if "analytics_url" in self.given else {"ANALYTICS_": ANALYTICS_NAME})
        chosen = {"WAYBILL_DATABASE_READ_ROLE": READER}
        for kind, name in names.items():
            postgres.create_database(name)
            roles = Roles(url(OWNER, name), url(APPLICATION, name), READER, passwords[READER])
            prepare(make_url(postgres.url(name)), roles, str(self.given.get("database_schema") or "public"))
            variable = "ANALYTICS_URL" if kind else "DATABASE_URL"
            chosen[f"WAYBILL_{variable}"] = roles.application.render_as_string(hide_password=False)
            chosen[f"WAYBILL_MIGRATION_{variable}"] = roles.owner.render_as_string(hide_password=False)
        self.read_url = url(READER, DATABASE_NAME).render_as_string(hide_password=False)
        return chosen

    def _start_server(self, server: EmbeddedPostgres | EmbeddedRedis, preferred: int) -> None:
        say(f"Starting {server.name} ...")
        for _ in range(_PORTS_TRIED):
            server.port = self._free_port(preferred, server.name)
            # Another program may take the port between the check and the start: then try the next one.
            with suppress(PortTaken):
                server.start()
                break
        self.supervisor.start(server)

    def _start_programs(self) -> None:
        # Not even the address of the owner: what they run as cannot change the tables.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_MIGRATION_")}
        self.api = Program("API", [], self.home.logs / "api.log", environment)
        self._choose_api_port(self.api)
        say(f"Starting the API and {self.workers} worker{'' if self.workers == 1 else 's'} ...")
        self.supervisor.start(self.api)
        for number in range(1, self.workers + 1):
            log = self.home.logs / f"worker-{number}.log"
            program = Program(f"worker {number}", ["-m", "services.cli", "worker"], log, environment)
            self.worker_programs.append(program)
            self.supervisor.start(program)
        self.supervisor.tell_of_changes()

    def _choose_api_port(self, api: Program) -> None:
        assert self.facts is not None
        port = self._free_port(self.port, "the API")
        self.facts.api_url = f"http://{LOOPBACK}:{port}"
        self.facts.docs_url = f"{self.facts.api_url}/docs"
        self.facts.console_url = f"{self.facts.api_url}/console" if Settings().console else None
        api.arguments = ["-m", "services.cli", "api", "--host", LOOPBACK, "--port", str(port)]

    def _wait_until_ready(self) -> None:
        assert self.facts is not None
        assert self.api is not None
        deadline = time.monotonic() + READY_SECONDS
        # trust_env: the user's proxy must not be used for the loopback address.
        with httpx2.Client(trust_env=False, timeout=2.0) as client:
            while not self.stop.wanted:
                if _ended(self.api) and child.port_was_taken(self.api.last_words()):
                    # Another program was faster: take the next port.
                    self._choose_api_port(self.api)
                    self.api.start()
                    self.supervisor.tell_of_changes()
                for program in (self.api, *self.worker_programs):
                    self._check_alive(program)
                # If another program was faster, the answer may come from another Waybill.
                if _answers(client, self.facts.api_url) and _listens(self.api, self.facts.api_url):
                    return
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"the API was not ready after {READY_SECONDS:.0f} s. "
                        f"The end of its log, {self.api.log}:\n{self.api.last_words()}"
                    )
                time.sleep(0.05)

    def _check_alive(self, program: Program) -> None:
        if program.process is not None and _ended(program):
            raise CommandError(
                f"{program.name} {how_it_ended(program.process.returncode)} during startup. "
                f"The end of its log, {program.log}:\n{program.last_words()}"
            )

    def _free_port(self, preferred: int, what: str) -> int:
        taken = [server.port for server in (self.postgres, self.redis) if server is not None and server.running]
        port = next_free_port(preferred, taken)
        if port != preferred:
            say(f"Port {preferred} is taken: {what} listens on {port} instead.")
        return port

    def _first_facts(self, settings: Settings) -> Facts:
        try:
            before = read_facts(self.home.path)
        except CommandError:
            before = None
            say(f"{self.home.path / FILE_NAME} is damaged and will be replaced; demo users get new passwords.")
        facts = Facts(
            version=version("waybill"),
            api_url="",
            docs_url="",
            database_url=settings.database_url,
            migration_database_url=settings.migration_database_url,
            read_database_url=self.read_url,
            analytics_url=settings.analytics_url,
            migration_analytics_url=settings.migration_analytics_url,
            database_schema=settings.database_schema,
            database_read_role=settings.database_read_role,
            redis_url=settings.redis_url,
            redis_prefix=settings.redis_prefix,
            secret_key_file=None if self.given.get("secret_key") else self.home.secret_key_file,
            data_dir=self.home.path,
            environment=settings.environment.value,
        )
        if before is not None and settings.is_development:
            facts.operator, facts.approver = before.operator, before.approver
            facts.admin, facts.users = before.admin, before.users
            facts.api_key = before.api_key
        return facts

    def _write_facts(self) -> None:
        if self.facts is None:
            return
        pids = [_pid(program) for program in self.worker_programs]
        self.facts.pids = ProcessIds(
            supervisor=None if self.stop.stopping else os.getpid(),
            postgres=_pid(self.postgres),
            redis=_pid(self.redis),
            api=_pid(self.api),
            workers=[pid for pid in pids if pid is not None],
        )
        self.facts.write()

    def _announce(self) -> None:
        assert self.facts is not None
        for line in announcement(self.facts, self.home):
            say(line)


def _pid(part: Part | None) -> int | None:
    if part is None or part.process is None or part.process.poll() is not None:
        return None
    return part.process.pid


def _ended(program: Program) -> bool:
    return program.process is not None and program.process.poll() is not None


def _listens(program: Program, url: str) -> bool:
    """Whether this program is the one that listens there; True if the system has no /proc to check."""
    descriptors = Path(f"/proc/{_pid(program)}/fd")
    port = f":{httpx2.URL(url).port or 80:04X}"
    held = set()
    try:
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        for descriptor in descriptors.iterdir():
            with suppress(OSError):
                held.add(os.readlink(descriptor))
    except OSError:
        return not descriptors.parent.parent.joinpath("net/tcp").exists()
    # 0A: listening.
    return any(f"socket:[{row[9]}]" in held for row in sockets if row[1].endswith(port) and row[3] == "0A")


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/readyz").is_success
    except httpx2.HTTPError:
        return False
