"""A worker process of the benchmark: `python -m benchmarks.outbox.worker TIMELINE`.

It uses Waybill's poll loop, processor, decoding and unit of work; only the event and its handler are the benchmark's.
"""

import argparse
import asyncio
import signal
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from benchmarks.outbox.events import PINGS, WATCHED, Ping
from benchmarks.outbox.timeline import Batch, TimelineWriter
from services.collector import spare_what_stays
from services.keys import Keys
from services.logs import configure_logging
from services.outbox.doorbell import Doorbell, DoorbellListener
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.subscription import Subscription
from services.settings import get_settings
from services.unit_of_work import UnitOfWork
from worker.context import open_polling, processing_options
from worker.poller import Poller


class Counter:
    """The trivial handler of one processor: it records its events, and waits or fails if told to."""

    def __init__(self, wait: float, *, failing: bool) -> None:
        self.noted: list[Claimed[Ping]] = []
        self._wait = wait
        self._failing = failing

    async def __call__(self, _: UnitOfWork, events: Sequence[Claimed[Ping]]) -> None:
        if self._failing and any(claimed.event.key == WATCHED for claimed in events):
            raise RuntimeError("the benchmark makes this event fail")
        self.noted += events
        if self._wait:
            await asyncio.sleep(self._wait)


class TimedProcessor(Processor[UnitOfWork]):
    """Records each batch once it is committed, and checks that aggregates keep their order.

    It subscribes to these events with the same handler. `last` has the position of each aggregate's latest event,
    across all processors of the process.
    """

    def __init__(
        self,
        counter: Counter,
        events: Sequence[type[Ping]],
        timeline: TimelineWriter,
        last: "array[int]",
        **more: Any,
    ) -> None:
        super().__init__(subscriptions=[Subscription(event, counter, plain_sql=True) for event in events], **more)
        self._counter = counter
        self._timeline = timeline
        self._last = last

    async def run_once(self) -> Outcome:
        self._counter.noted.clear()
        outcome = await super().run_once()
        failed = outcome.retried + outcome.buried
        if outcome.processed or failed:
            watched = disordered = 0
            last = self._last
            for claimed in self._counter.noted:
                key = claimed.event.key
                watched += key == WATCHED
                disordered += claimed.position <= last[key]
                last[key] = claimed.position
            self._timeline.write(Batch(time.monotonic(), outcome.processed, watched, failed, disordered))
        return outcome


async def work(options: argparse.Namespace) -> None:
    """Process until SIGTERM."""
    settings = get_settings()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    timeline, last = TimelineWriter(options.timeline), array("q", bytes(8 * (options.aggregates + 1)))
    redis, key = Redis.from_url(settings.redis_url, socket_connect_timeout=1), Keys.of(settings).doorbell
    async with open_polling(settings, settings.outbox_time_limit) as polling, redis, Doorbell(redis, key) as doorbell:
        shared = processing_options(settings)
        processors = [
            TimedProcessor(
                Counter(options.wait, failing=options.failing),
                PINGS[: options.types],
                timeline,
                last,
                open_transaction=lambda: UnitOfWork(polling, doorbell),
                prepared=True,
                **shared,
            )
            for _ in range(settings.outbox_concurrency)
        ]
        poller = Poller(processors, DoorbellListener(redis, key), settings.outbox_poll_interval)
        poller.start()
        await stop.wait()
        await poller.stop(settings.worker_shutdown_grace)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outbox.worker", description=__doc__)
    parser.add_argument("timeline", type=Path, help="the file in which batches are recorded")
    parser.add_argument("--aggregates", type=int, required=True, help="the most different aggregates")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that the handler waits per batch (default: 0)")
    parser.add_argument("--failing", action="store_true", help="make the events of the watched aggregate fail")
    parser.add_argument("--types", type=int, default=1, help="how many event types it subscribes to (default: 1)")
    options = parser.parse_args()
    configure_logging(get_settings(), "worker")
    spare_what_stays()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
