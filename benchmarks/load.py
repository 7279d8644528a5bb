"""The load generator, a separate process: `python -m benchmarks.load` reads a job as JSON and prints the results.

It does as little work per request as possible: requests are prepared in advance except for the key, and only status and
length of a reply are read. A client is one connection, which has one request at a time.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any, cast
from uuid import uuid4

import uvloop

from benchmarks.usage import Meter, peak_rss_mib

_KEY = b"%036d"
_PATIENCE = 60.0
"""Seconds to wait for the last replies."""


@dataclass(slots=True)
class Seen:
    """The results of the measured period. `cpu` and the like are seconds."""

    replies: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    wrong: dict[str, int] = field(default_factory=dict)
    example: str = ""
    cpu: float = 0.0
    postgres_cpu: float = 0.0
    machine_cpu: float = 0.0
    own_cpu: float = 0.0
    peak_rss_mib: float = 0.0

    def read(self, meter: Meter, pid: int) -> None:
        """Store the metered values, and the peak memory of the process `pid`."""
        self.seconds, self.cpu = meter.seconds, meter.cpu
        self.postgres_cpu, self.machine_cpu = meter.postgres_cpu, meter.machine_cpu
        self.peak_rss_mib = peak_rss_mib(pid)


class Load:
    """Requests that the clients take in turn, and their results.

    `job["requests"]` are the parts before and after the key, and the status that the reply must have. With
    `job["repeated"]`, each client sends this share (0 to 1) of its requests a second time, with the same key. With
    `job["rate"]`, so many requests per second are sent at random times, whether or not earlier ones are finished (an
    open loop); otherwise each client sends its next request when it has the reply to the last one.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._requests = [(head.encode(), tail.encode(), status) for head, tail, status in job["requests"]]
        self._repeated: float = job.get("repeated", 0.0)
        self._rate: float | None = job.get("rate")
        self._chance = random.Random(1)
        self._sent = 0
        # New in every run: a key that was used before would only be answered with the stored reply.
        self._keys = uuid4().int % 10**24 * 10**9
        # In turn: the server closes a connection that is idle for long.
        self._free: deque[Client] = deque()
        self._due: deque[float] = deque()
        self.stopped = False
        self.measuring = False
        self.seen = Seen()

    def free(self, client: "Client") -> None:
        """Have the client, which waits for no reply, send the next request, or end."""
        if self.stopped:
            client.close()
        elif self._rate is None:
            self._send(client, time.perf_counter())
        elif self._due:
            self._send(client, self._due.popleft())
        else:
            self._free.append(client)

    async def offer(self) -> None:
        """Send requests at the rate until stopped. Without a free client, a request waits, which is in its latency."""
        assert self._rate is not None
        due = time.perf_counter()
        while True:
            due += self._chance.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if self.stopped:
                return
            if self._free:
                self._send(self._free.popleft(), due)
            else:
                self._due.append(due)

    def stop(self) -> None:
        """Close each connection as soon as its last reply has come."""
        self.stopped = True
        for client in self._free:
            client.close()

    def take(self, reply: bytes, latency: float, wanted_status: str) -> None:
        status = reply[9:12].decode()
        if status != wanted_status:
            self.seen.wrong[status] = self.seen.wrong.get(status, 0) + 1
            self.seen.example = reply.decode(errors="replace")
        if self.measuring:
            self.seen.replies += 1
            self.seen.latencies.append(latency)

    def _send(self, client: "Client", due: float) -> None:
        if self._repeated and client.last is not None and self._chance.random() < self._repeated:
            # It has been answered: this client has only one request at a time.
            client.send(*client.last, due)
            return
        head, tail, status = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        client.send(head + _KEY % (self._keys + self._sent) + tail, status, due)


class Client(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._due = 0.0
        self.last: tuple[bytes, str] | None = None
        """The last request, with the status that its reply must have."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._load.free(self)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end > 0:
            at = data.lower().index(b"content-length: ", 0, end) + 16
            if len(data) >= end + 4 + int(data[at : data.index(b"\r", at)]):
                self._buffer = b""
                assert self.last is not None
                self._load.take(data, time.perf_counter() - self._due, self.last[1])
                self._load.free(self)
                return
        self._buffer = data

    def connection_lost(self, _: Exception | None) -> None:
        if not self._load.stopped:
            self._load.seen.wrong["closed"] = self._load.seen.wrong.get("closed", 0) + 1
        self.closed.set_result(None)

    def send(self, request: bytes, wanted_status: str, due: float) -> None:
        """Send it. Its latency is counted from when it was due (`time.perf_counter`)."""
        self.last, self._due = (request, wanted_status), due
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()


async def run(job: dict[str, Any]) -> Seen:
    load = Load(job)
    loop = asyncio.get_running_loop()
    ports = cycle(job["ports"])
    clients = [
        (await loop.create_connection(lambda: Client(load), job["host"], next(ports)))[1] for _ in range(job["clients"])
    ]
    offering = asyncio.create_task(load.offer()) if "rate" in job else None
    await asyncio.sleep(job["warmup"])
    first, *others = job["pids"]
    meter = Meter(first, job["postgres_pid"], others=others)
    own = _own_cpu()
    meter.start()
    load.measuring = True
    await asyncio.sleep(job["seconds"])
    load.measuring = False
    meter.stop()
    load.stop()
    await asyncio.wait_for(asyncio.gather(*(client.closed for client in clients)), _PATIENCE)
    if offering is not None:
        await offering
    seen = load.seen
    seen.own_cpu = _own_cpu() - own
    seen.read(meter, first)
    return seen


def _own_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run_job(run: Callable[[dict[str, Any]], Coroutine[Any, Any, Seen]]) -> None:
    """Run a benchmark's subprocess: reads the job as JSON, and prints the results as JSON."""
    job = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(run(job)))))


if __name__ == "__main__":
    run_job(run)
