"""Hostile clients of one kind, in a process of their own: `python -m benchmarks.hostile.crowd`.

It reads a job as a line of JSON, prints a line when all of its clients have connected, and prints what they were
answered when its standard input ends.

Each client has an address of its own (127.64.x.y), since limits of one address would keep most of what they send away
from the API. It sends its next request when the last has been answered, but no more often than its pace allows. The
process is niced: what it needs to make requests must not slow down the honest clients on the same machine.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.hostile.kinds import HALF_A_HEAD, SHARES, Kind, explain, requests

# Not that of `benchmarks.stage`, which would import all of Waybill into each of these processes.
_ROOT = Path(__file__).parent.parent.parent
NICENESS = 10
CLOSED = "closed without a reply"
_PATIENCE = 30.0
"""Seconds to wait for a reply."""


class Crowd:
    """The clients of one kind, and what they were answered."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._job = job
        self._connected: set[int] = set()
        self._all_connected = asyncio.Event()
        self._kind = Kind(job["kind"])
        self.seen: Counter[str] = Counter()
        self.seconds = 0.0

    async def run(self) -> None:
        clients = [asyncio.create_task(self._client(number)) for number in range(self._job["clients"])]
        await self._all_connected.wait()
        print("ready", flush=True)
        began = time.perf_counter()
        self.seen.clear()
        await asyncio.to_thread(sys.stdin.read)
        self.seconds = time.perf_counter() - began
        for client in clients:
            client.cancel()
        for found in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(found, asyncio.CancelledError):
                raise RuntimeError(f"a client of {self._kind} ended") from found

    async def _client(self, number: int) -> None:
        tokens: Sequence[str] = self._job["tokens"]
        series = requests(self._kind, tokens[number % len(tokens)], number) if self._kind != Kind.slow_heads else None
        address = f"127.{self._job['network']}.{number // 200}.{1 + number % 200}"
        # Not all of them at once.
        await asyncio.sleep(random.Random(number).random() / self._job["pace"])
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    self._job["host"], self._job["port"], local_addr=(address, 0)
                )
            except OSError as error:
                self.seen[f"not connected: {error.strerror}"] += 1
                await asyncio.sleep(1 / self._job["pace"])
                continue
            self._connected.add(number)
            if len(self._connected) == self._job["clients"]:
                self._all_connected.set()
            try:
                if series is None:
                    await self._send_slowly(reader, writer)
                else:
                    await self._send(reader, writer, series)
            except (ConnectionError, asyncio.IncompleteReadError):
                self.seen[CLOSED] += 1
                await asyncio.sleep(1 / self._job["pace"])
            except TimeoutError:
                self.seen["no reply"] += 1
            finally:
                writer.close()

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, series: Iterator[bytes]) -> None:
        """Send requests until the server closes the connection."""
        while True:
            began = time.perf_counter()
            # All of it is in the buffer, and goes on being sent while the reply may come already.
            writer.write(next(series))
            stays = await self._read(reader)
            await asyncio.sleep(max(0.0, began + 1 / self._job["pace"] - time.perf_counter()))
            if not stays:
                return

    async def _send_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send a head a byte at a time, until there is a reply."""
        writer.write(HALF_A_HEAD)
        reply = asyncio.create_task(self._read(reader))
        try:
            while not (await asyncio.wait([reply], timeout=1 / self._job["pace"]))[0]:
                writer.write(b"x")
            await reply
        finally:
            reply.cancel()
            with suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
                await reply

    async def _read(self, reader: asyncio.StreamReader) -> bool:
        """Read a reply and count it; returns whether the connection stays open."""
        async with asyncio.timeout(_PATIENCE):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        status = int(head.split()[1])
        what = explain(status, body)
        if status >= 500 and b"\r\nretry-after: " not in head:
            what += " without Retry-After"
        self.seen[what] += 1
        return b"\r\nconnection: close" not in head


def is_fault(reply: str) -> bool:
    """Whether a hostile client must never be answered so: 5xx except a 503 that says why and when to try again."""
    status, _, code = reply.partition(" ")
    if reply == "no reply" or reply.startswith("not connected"):
        return True
    return status.startswith("5") and (status != "503" or "without" in code)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the clients of a kind were answered, and in how many seconds."""

    replies: dict[str, int]
    seconds: float

    @property
    def rate(self) -> float:
        """Replies a second."""
        return sum(self.replies.values()) / self.seconds

    @property
    def faults(self) -> dict[str, int]:
        return {reply: number for reply, number in self.replies.items() if is_fault(reply)}


@contextmanager
def crowds(
    target: Mapping[str, Any], tokens: Sequence[str], pace: float, clients: Mapping[Kind, int] = SHARES
) -> Iterator[dict[Kind, Answered]]:
    """Run hostile clients beside the block, a process for each kind; yields what they saw, filled on exit.

    `target` has `host` and `port`; each client sends at most `pace` requests a second. The block begins when all of
    them have connected.
    """
    seen: dict[Kind, Answered] = {}
    with ExitStack() as stack:
        started = {}
        for network, (kind, number) in enumerate(clients.items(), start=64):
            job = {**target, "kind": kind, "clients": number, "pace": pace, "network": network, "tokens": list(tokens)}
            started[kind] = stack.enter_context(_started(job))
        for kind, process in started.items():
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the clients of {kind} did not start")
        yield seen
        for process in started.values():
            assert process.stdin is not None
            process.stdin.close()
        for kind, process in started.items():
            assert process.stdout is not None
            said = process.stdout.read()
            if process.wait() != 0:
                raise RuntimeError(f"the clients of {kind} failed")
            seen[kind] = Answered(**json.loads(said))


@contextmanager
def _started(job: Mapping[str, Any]) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "benchmarks.hostile.crowd"]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            yield process
        finally:
            process.kill()


def main() -> None:
    os.nice(NICENESS)
    job = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_seen(job))))


async def _seen(job: Mapping[str, Any]) -> dict[str, Any]:
    crowd = Crowd(job)
    await crowd.run()
    return {"replies": crowd.seen, "seconds": crowd.seconds}


if __name__ == "__main__":
    main()
