"""Good clients, and clients that leave."""

import asyncio
import csv
import io
import random
from dataclasses import dataclass, field

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from tests.faults.storm.findings import Findings
from tests.faults.storm.wire import Broken, Leaving, Reply, exchange, render
from tests.faults.storm.writes import Kind, Shop, Write, Writer

CLIENTS = 12
LEAVERS = 4
PATIENCE = 10.0
"""Seconds that a good client waits for a reply before it sends the request again."""
_REFUSED = 0.5
"""Seconds for which clients avoid a port that has refused a connection."""

_LISTS = (
    "/v1/orders?limit=50",
    "/v1/orders?limit=20&include=items",
    "/v1/orders?as=buyer&limit=200",
    "/v1/accounts/me",
    "/v1/accounts/me/statement?limit=200",
    "/v1/products?q=product",
    "/v1/users/me",
)
_DOWNLOAD = "/v1/accounts/me/statement.csv"
_AGAIN = frozenset({408, 425, 429, 503})
"""Statuses that ask a client to retry; nothing is wrong with the request."""


@dataclass
class Load:
    """Clients of the APIs at `ports`. The answers they got are in `writes`."""

    ports: list[int]
    shop: Shop
    tokens: Tokens
    seed: int
    findings: Findings
    writes: list[Write] = field(default_factory=list)
    over: bool = False
    _refused: dict[int, float] = field(default_factory=dict)
    """When a port last refused a connection."""

    async def run(self) -> None:
        """Until `over` is set, and all have had their last answer or given up."""
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))
            for number in range(LEAVERS):
                group.create_task(self._leaver(number))

    async def _exchange(self, dice: random.Random, request: bytes, leaving: Leaving | None = None) -> Reply:
        """Use an API that has not just refused connections, as a load balancer would. Raises `Broken`."""
        clock = asyncio.get_running_loop().time
        standing = [port for port in self.ports if clock() - self._refused.get(port, -_REFUSED) >= _REFUSED]
        port = dice.choice(standing or self.ports)
        try:
            return await exchange(port, request, leaving=leaving, seconds=PATIENCE)
        except ConnectionRefusedError:
            self._refused[port] = clock()
            raise

    async def _client(self, number: int) -> None:
        dice = random.Random(f"{self.seed} client {number}")
        writer = Writer(dice, self.shop, f"{self.seed}-{number}")
        while not self.over:
            if dice.random() < 0.2:
                await self._read(dice)
            else:
                await self._write_and_follow(dice, writer, writer.any())
            await asyncio.sleep(dice.uniform(0, 0.05))

    async def _write_and_follow(self, dice: random.Random, writer: Writer, write: Write) -> None:
        self.writes.append(write)
        await self.deliver(dice, write)
        after = writer.follow_up(write)
        if after is not None and not self.over:
            await asyncio.sleep(dice.uniform(0, 0.3))
            self.writes.append(after)
            await self.deliver(dice, after)

    async def _leaver(self, number: int) -> None:
        """Request lists and downloads, mostly without waiting for the end."""
        dice = random.Random(f"{self.seed} leaver {number}")
        while not self.over:
            await self._look(dice, Leaving.at_random(dice))
            await asyncio.sleep(dice.uniform(0, 0.3))

    async def _look(self, dice: random.Random, leaving: Leaving) -> None:
        download = dice.random() < 0.6
        path, by = (
            (_DOWNLOAD, self.shop.collector) if download else (dice.choice(_LISTS), dice.choice(self.shop.buyers))
        )
        request = render("GET", path, token=self.tokens.make(session_of(by)))
        try:
            reply = await self._exchange(dice, request, leaving)
        except Broken:
            self.findings.seen["looks without an answer"] += 1
            return
        if not reply.whole:
            self.findings.seen["left a download" if download else "left a list"] += 1
            self.findings.seen[f"left by {leaving.way}"] += 1
        if reply.status not in (0, 200):
            self._may_ask_again(f"GET {path}", reply)

    async def _read(self, dice: random.Random) -> None:
        """Read a list or a whole download as a client that stays."""
        download = dice.random() < 0.05
        path, by = (
            (_DOWNLOAD, self.shop.collector) if download else (dice.choice(_LISTS), dice.choice(self.shop.buyers))
        )
        try:
            reply = await self._exchange(dice, render("GET", path, token=self.tokens.make(session_of(by))))
        except Broken:
            self.findings.seen["reads without an answer"] += 1
            return
        if not reply.whole:
            self.findings.seen["reads that broke off"] += 1
        elif reply.status != 200:
            self._may_ask_again(f"GET {path}", reply)
        else:
            self.findings.seen["downloads" if download else "lists"] += 1
            if download:
                self._check_download(reply)

    def _check_download(self, reply: Reply) -> None:
        """A complete download has all versions from the first to the last, without a gap."""
        lines = list(csv.DictReader(io.StringIO(reply.body.decode(), newline="")))
        versions = [int(line["version"]) for line in lines]
        if versions != list(range(1, len(lines) + 1)) or len(lines) < self.shop.entries:
            self.findings.add("a download with gaps", f"{len(lines)} lines, at least {self.shop.entries} wanted")

    async def deliver(self, dice: random.Random, write: Write, *, give_up: float | None = None) -> Reply | None:
        """Send it with the same key until there is a definite answer, and return that; None if the storm ends first.

        Some tries leave early, some are sent twice at once, and some are repeated after the answer.
        """
        pause = 0.05
        ends = None if give_up is None else asyncio.get_running_loop().time() + give_up
        while True:
            calm = give_up is not None
            leaving = None if calm or dice.random() > 0.15 else Leaving.at_random(dice)
            twins = 2 if not calm and leaving is None and dice.random() < 0.05 else 1
            replies = await asyncio.gather(*(self._try(dice, write, leaving) for _ in range(twins)))
            definite = [reply for reply in replies if reply is not None]
            if definite:
                if not calm and dice.random() < 0.1 and (again := await self._try(dice, write, None)) is not None:
                    definite.append(again)
                self._compare(write, definite)
                return definite[-1]
            if self.over if ends is None else asyncio.get_running_loop().time() > ends:
                return None
            await asyncio.sleep(dice.uniform(0, pause))
            pause = min(2 * pause, 1.0)

    async def _try(self, dice: random.Random, write: Write, leaving: Leaving | None) -> Reply | None:
        """One try; the reply if it came whole and is definite."""
        token = None if write.by is None else self.tokens.make(session_of(write.by))
        key = write.key if write.has_key else None
        request = render("POST", write.path, token=token, key=key, body=write.body)
        write.tries += 1
        try:
            reply = await self._exchange(dice, request, leaving)
        except Broken as error:
            self.findings.seen[f"tries without an answer: {type(error).__name__}"] += 1
            return None
        if leaving is not None and not reply.whole:
            self.findings.seen["left a write"] += 1
            self.findings.seen[f"left by {leaving.way}"] += 1
        if not reply.whole:
            if 200 <= reply.status < 300:
                write.glimpsed = reply.status
            return None
        if self._is_definite(write, reply):
            return reply
        return None

    def _is_definite(self, write: Write, reply: Reply) -> bool:
        if reply.status >= 500 or reply.status in _AGAIN:
            self._may_ask_again(f"POST {write}", reply)
            return False
        # For example, the same request is in flight, or a lock that it needs is taken.
        if "retry-after" in reply.headers:
            self.findings.seen[f"status {reply.status} with Retry-After"] += 1
            return False
        if write.first is None and not write.expects(reply.status):
            self.findings.add("an answer that the request did not deserve", f"{write}: {reply}")
        return True

    def _may_ask_again(self, what: str, reply: Reply) -> None:
        """Count a reply that asks for a retry; any other failure is a fault."""
        self.findings.seen[f"status {reply.status}"] += 1
        if reply.status not in _AGAIN:
            self.findings.add(f"status {reply.status}", f"{what}: {reply}")
        elif reply.whole and "retry-after" not in reply.headers:
            self.findings.add("no Retry-After", f"{what}: {reply}")

    def _compare(self, write: Write, replies: list[Reply]) -> None:
        """Every definite answer to one key equals the first one."""
        for reply in replies:
            if write.first is None:
                write.first = reply
                self.findings.seen[f"{write.kind} {reply.status}"] += 1
                if write.has_key and write.glimpsed not in (None, reply.status):
                    self.findings.add("a key that answers otherwise than before", f"{write}; before {write.glimpsed}")
            elif not write.has_key:
                # Of two at once, one is told that the other has registered.
                write.first = min(write.first, reply, key=lambda one: one.status)
            elif (reply.status, reply.body) != (write.first.status, write.first.body):
                self.findings.add("a key that answers otherwise than before", f"{write}; now {reply}")


def unanswered(writes: list[Write]) -> list[Write]:
    """Writes whose client never got a definite answer: they may or may not have taken effect."""
    return [write for write in writes if write.first is None and write.kind is not Kind.registration]
