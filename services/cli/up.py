"""`waybill up`: everything on this machine, in one command, until Ctrl-C."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from services.cli.announcement import announcement
from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR, Facts, ProcessIds, read_facts
from services.cli.home import Home, hold
from services.cli.migrate import check_database, upgrade_to_head
from services.cli.supervisor import Part, Program, Stop, Supervisor, how_it_ended
from services.embedded import EmbeddedPostgres, EmbeddedRedis, PortTaken, child
from services.embedded.ports import LOOPBACK, next_free_port
from services.settings import Environment, Settings

DATABASE_NAME = "waybill"
READY_SECONDS = 60.0
_PORTS_TRIED = 20


def up(
    data_dir: Annotated[Path, typer.Option(help="Where data, logs and waybill.json lie.")] = DEFAULT_DATA_DIR,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The API's port; the next free one if taken.")] = 8000,
    workers: Annotated[int, typer.Option(min=0, max=64, help="How many worker processes.")] = 1,
) -> None:
    """Run everything here: PostgreSQL, Redis, the API and workers. Ctrl-C stops it; the data stay.

    WAYBILL_DATABASE_URL and WAYBILL_REDIS_URL, where set, are used instead of the embedded servers.
    """
    with plain_errors(), hold(data_dir) as home:
        _House(home, port, workers).run()


class _House:
    """One run of `waybill up`."""

    def __init__(self, home: Home, port: int, workers: int) -> None:
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
        # What the user has set, in the environment or a .env file; it goes before what we would choose.
        self.given = {**DotEnvSettingsSource(Settings)(), **EnvSettingsSource(Settings)()}

    def run(self) -> None:
        self.stop.listen()
        try:
            self._start()
            if not self.stop.wanted:
                self._announce()
                self.supervisor.watch()
        except KeyboardInterrupt:
            say("Start-up broken off.")
        finally:
            self.stop.stopping = True
            say("\nStopping: workers and API first, then the servers ...")
            self.supervisor.stop_all()
            self._write_facts()
            say(f"Stopped. The data are kept in {self.home.path}")

    def _start(self) -> None:
        settings = self._start_servers()
        say("Bringing the database to the newest schema ...")
        check_database(settings)
        upgrade_to_head()
        self.facts = self._first_facts(settings)
        if settings.is_development:
            # Imported here, with all domains: nothing else in this process needs them.
            from services.cli.seed import seed

            asyncio.run(seed(settings, self.facts, self._write_facts))
        if self.stop.wanted:
            return
        self._start_programs()
        self._wait_until_ready()

    def _start_servers(self) -> Settings:
        chosen = {"WAYBILL_WORKER_PROCESSES": str(self.workers)}
        if not self.given.get("environment"):
            chosen["WAYBILL_ENVIRONMENT"] = Environment.development.value
        if not self.given.get("secret_key"):
            chosen["WAYBILL_SECRET_KEY"] = self.home.secret_key()
        if not self.given.get("database_url"):
            self.postgres = EmbeddedPostgres(self.home.path / "postgres")
            self._start_server(self.postgres, 5432)
            self.postgres.create_database(DATABASE_NAME)
            chosen["WAYBILL_DATABASE_URL"] = self.postgres.url(DATABASE_NAME)
        if not self.given.get("redis_url"):
            self.redis = EmbeddedRedis(self.home.path / "redis")
            self._start_server(self.redis, 6379)
            chosen["WAYBILL_REDIS_URL"] = self.redis.url()
        # For what runs in this process, migrations and seed, and for the children.
        os.environ.update(chosen)
        return Settings()

    def _start_server(self, server: EmbeddedPostgres | EmbeddedRedis, preferred: int) -> None:
        say(f"Starting {server.name} ...")
        for _ in range(_PORTS_TRIED):
            server.port = self._free_port(preferred, server.name)
            # Somebody may take a port between the look and the start: the next one, then.
            with suppress(PortTaken):
                server.start()
                break
        self.supervisor.start(server)

    def _start_programs(self) -> None:
        assert self.facts is not None
        port = self._free_port(self.port, "the API")
        self.facts.api_url = f"http://{LOOPBACK}:{port}"
        self.facts.docs_url = f"{self.facts.api_url}/docs"
        arguments = ["-m", "services.cli", "api", "--host", LOOPBACK, "--port", str(port)]
        self.api = Program("API", arguments, self.home.logs / "api.log", os.environ.copy())
        say(f"Starting the API and {self.workers} worker{'' if self.workers == 1 else 's'} ...")
        self.supervisor.start(self.api)
        for number in range(1, self.workers + 1):
            log = self.home.logs / f"worker-{number}.log"
            program = Program(f"worker {number}", ["-m", "services.cli", "worker"], log, os.environ.copy())
            self.worker_programs.append(program)
            self.supervisor.start(program)
        self._write_facts()

    def _wait_until_ready(self) -> None:
        assert self.facts is not None
        assert self.api is not None
        deadline = time.monotonic() + READY_SECONDS
        # trust_env: a proxy of the user's is not the way to the loopback address.
        with httpx.Client(base_url=self.facts.api_url, trust_env=False, timeout=2.0) as client:
            while not self.stop.wanted:
                for program in (self.api, *self.worker_programs):
                    self._check_alive(program)
                if _answers(client):
                    return
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"the API was not ready after {READY_SECONDS:.0f} s. "
                        f"The end of its log, {self.api.log}:\n{child.tail(self.api.log)}"
                    )
                time.sleep(0.05)

    def _check_alive(self, program: Program) -> None:
        process = program.process
        if process is not None and process.poll() is not None:
            raise CommandError(
                f"{program.name} {how_it_ended(process.returncode)} at start-up. "
                f"The end of its log, {program.log}:\n{child.tail(program.log)}"
            )

    def _free_port(self, preferred: int, what: str) -> int:
        taken = [server.port for server in (self.postgres, self.redis) if server is not None and server.running]
        port = next_free_port(preferred, taken)
        if port != preferred:
            say(f"Port {preferred} is taken: {what} listens on {port} instead.")
        return port

    def _first_facts(self, settings: Settings) -> Facts:
        before = read_facts(self.home.path)
        facts = Facts(
            api_url="",
            docs_url="",
            database_url=settings.database_url,
            redis_url=settings.redis_url,
            data_dir=self.home.path,
            environment=settings.environment.value,
        )
        if before is not None and settings.is_development:
            facts.operator, facts.users = before.operator, before.users
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


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.HTTPError:
        return False
