"""The load generator, a separate process: `python -m benchmarks.load` reads a job as JSON and prints the results.

It does as little work per request as possible: requests are prepared in advance except for the key, and only status and
length of a reply are read. Each client waits for its reply before it sends the next request.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from typing import Any, cast
from uuid import uuid4

import uvloop

from benchmarks.usage import Meter, peak_rss_mib

_KEY = b"%036d"


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
    """Requests that the clients take in turn, and their results."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._requests: list[tuple[bytes, bytes]] = [(head.encode(), tail.encode()) for head, tail in job["requests"]]
        self._wanted_status: str = job["status"]
        self._sent = 0
        # New in every run: a key that was used before would only be answered with the stored reply.
        self._keys = uuid4().int % 10**24 * 10**9
        self.stopped = False
        self.measuring = False
        self.seen = Seen()

    def next_request(self) -> bytes:
        head, tail = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        return head + _KEY % (self._keys + self._sent) + tail

    def take(self, reply: bytes, latency: float) -> None:
        status = reply[9:12].decode()
        if status != self._wanted_status:
            self.seen.wrong[status] = self.seen.wrong.get(status, 0) + 1
            self.seen.example = reply.decode(errors="replace")
        if self.measuring:
            self.seen.replies += 1
            self.seen.latencies.append(latency)


class Client(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._sent_at = 0.0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end > 0:
            at = data.lower().index(b"content-length: ", 0, end) + 16
            if len(data) >= end + 4 + int(data[at : data.index(b"\r", at)]):
                self._buffer = b""
                self._load.take(data, time.perf_counter() - self._sent_at)
                self._send()
                return
        self._buffer = data

    def connection_lost(self, _: Exception | None) -> None:
        if not self._load.stopped:
            self._load.seen.wrong["closed"] = self._load.seen.wrong.get("closed", 0) + 1
        self.closed.set_result(None)

    def _send(self) -> None:
        if self._load.stopped:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._load.next_request())


async def run(job: dict[str, Any]) -> Seen:
    load = Load(job)
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(load), job["host"], job["port"]))[1] for _ in range(job["clients"])
    ]
    await asyncio.sleep(job["warmup"])
    meter = Meter(job["pid"], job["postgres_pid"])
    own = _own_cpu()
    meter.start()
    load.measuring = True
    await asyncio.sleep(job["seconds"])
    load.measuring = False
    meter.stop()
    load.stopped = True
    await asyncio.wait_for(asyncio.gather(*(client.closed for client in clients)), 30)
    seen = load.seen
    seen.own_cpu = _own_cpu() - own
    seen.read(meter, job["pid"])
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
