"""The real `waybill up` in a folder of a test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx2

from services.cli.facts import Facts, ProcessIds, read_facts

START_SECONDS = 90.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(shown.strip()) and not shown.startswith("Z")


def all_of(pids: ProcessIds) -> list[int]:
    return [pid for pid in (pids.postgres, pids.redis, pids.api, *pids.workers) if pid is not None]


def environment_without_settings() -> dict[str, str]:
    """As in a shell without any of Waybill's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}


class Up:
    """A running `waybill up` and what it says."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "services.cli"),
        stdin: int = subprocess.DEVNULL,
        data: str = "data",
    ) -> None:
        self.folder = folder
        self.data = folder / data
        self.output = folder / f"output-{uuid4().hex}.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *program, "up", "--data-dir", data, *arguments],
                cwd=folder,
                env=environment_without_settings(),
                stdin=stdin,
                stdout=output,
                stderr=output,
            )

    def said(self) -> str:
        return self.output.read_text()

    def facts(self) -> Facts:
        found = read_facts(self.data)
        assert found is not None
        return found

    def wait_until_running(self) -> None:
        wait_for(
            lambda: "Waybill is running." in self.said() or self.process.poll() is not None, "start-up", START_SECONDS
        )
        assert self.process.poll() is None, self.said()

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another command in the same folder, in a shell without any settings."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "services.cli", *arguments],
            cwd=self.folder,
            env=environment_without_settings(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def up(
    folder: Path, *arguments: str, program: Sequence[str] = ("-m", "services.cli"), data: str = "data"
) -> Iterator[Up]:
    started = Up(folder, *arguments, program=program, data=data)
    try:
        started.wait_until_running()
        yield started
    finally:
        if started.process.poll() is None:
            started.interrupt()


@contextmanager
def signed_in(facts: Facts) -> Iterator[httpx2.Client]:
    """A client that speaks for the first demo user."""
    buyer = facts.users[0]
    with httpx2.Client(base_url=facts.api_url, trust_env=False, timeout=10) as client:
        reply = client.post("/v1/token", data={"username": buyer.email, "password": buyer.password})
        assert reply.status_code == 200, reply.text
        assert reply.json()["token_type"] == "bearer"
        client.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"
        yield client


def place_an_order(facts: Facts, client: httpx2.Client) -> str:
    reply = client.post(
        "/v1/orders",
        json={"items": [{"product_id": facts.product_ids[0], "quantity": 2}]},
        headers={"Idempotency-Key": uuid4().hex},
    )
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def is_confirmed(client: httpx2.Client, order: str) -> bool:
    try:
        reply = client.get(f"/v1/orders/{order}")
    except httpx2.TransportError:
        return False
    return reply.is_success and reply.json()["status"] == "confirmed"


def order_is_confirmed(facts: Facts) -> str:
    """Place an order and wait until a worker has confirmed it."""
    with signed_in(facts) as client:
        order = place_an_order(facts, client)
        wait_for(lambda: is_confirmed(client, order), "the order to be confirmed")
    return order


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx2.TransportError:
        return False
