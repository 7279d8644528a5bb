"""Requests that survive a restart of the service: each is repeated until it is answered."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx2

ItemT = TypeVar("ItemT")
Query: TypeAlias = Mapping[str, str | int | list[str]]
"""Parameters of a URL; a list stands for a parameter that occurs several times."""

REQUEST_SECONDS = 30.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKOFF_FIRST, _BACKOFF_LAST = 0.05, 2.0


class ServiceError(Exception):
    """The service cannot be used, or its answer is unexpected; the message says what to do."""


@dataclass
class Patience:
    """How long to continue without any progress. `clock` counts seconds."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None

    def progress(self) -> None:
        self._since = None

    def exhausted(self) -> bool:
        """Whether the time is up. It is measured from the first call after the last progress."""
        if self._since is None:
            self._since = self.clock()
        return self.clock() - self._since >= self.seconds


@dataclass(frozen=True, slots=True)
class Reply:
    """A definite answer. `code` is that of the problem, empty if it is not one."""

    status: int
    body: Any
    code: str = ""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        detail = self.body.get("detail", "") if isinstance(self.body, dict) else ""
        return f"{self.status} {self.code} {detail}".strip()


@dataclass
class Login:
    """A user who signs in when a request needs it, and again when the token has expired."""

    email: str
    password: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    async def current_token(self, service: "Service") -> str:
        async with self._lock:
            if self.token is None:
                self.token = await service.sign_in(self.email, self.password)
            return self.token

    def forget(self, token: str) -> None:
        """Drop a token that was refused, unless it has already been replaced."""
        if self.token == token:
            self.token = None


@dataclass(frozen=True, slots=True)
class Target:
    """A running service, one of its operators, and one who approves what that operator may not do alone."""

    url: str
    operator: Login
    approver: Login | None = None


class Service:
    """The API at `http`'s base URL.

    Every request here may be sent twice without taking effect twice: it only reads, carries an idempotency key, or
    creates something with a unique name. So after lost connections, 429, 5xx and "in flight" it is sent again, with
    backoff and not before the end of a `Retry-After`, until `patience` is exhausted; that raises `ServiceError`.
    `limited` counts the answers with 429.
    """

    def __init__(self, http: httpx2.AsyncClient, patience: Patience) -> None:
        self._http = http
        self.patience = patience
        self.limited = 0

    async def call(
        self,
        who: Login,
        method: str,
        path: str,
        *,
        body: object = None,
        key: str | None = None,
        params: Query | None = None,
    ) -> Reply:
        """A definite answer to a request on behalf of `who`, with any status but 401."""
        for _ in range(2):
            token = await who.current_token(self)
            headers = {"Authorization": f"Bearer {token}"}
            if key is not None:
                headers["Idempotency-Key"] = key
            request = self._http.build_request(
                method, path, json=body, params=dict(params) if params else None, headers=headers
            )
            reply = await self._send(request)
            if reply.status != httpx2.codes.UNAUTHORIZED:
                return reply
            who.forget(token)
        raise ServiceError(f"{who.email} has signed in, but {method} {path} returned {reply}")

    async def read(self, who: Login, path: str, params: Query | None = None) -> Any:
        """The body of a successful GET. Raises `ServiceError` for any other answer."""
        return expect(await self.call(who, "GET", path, params=params), f"GET {path}").body

    async def read_pages(self, who: Login, path: str, params: Query) -> list[Any]:
        """The rows of a list, page by page to its end."""
        rows: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await self.read(who, path, {**params, "cursor": cursor} if cursor else params)
            rows += page["data"]
            cursor = page["next_cursor"]
        return rows

    async def sign_in(self, email: str, password: str) -> str:
        """A fresh access token. Raises `ServiceError` if the service refuses the credentials."""
        form = {"username": email, "password": password}
        reply = await self._send(self._http.build_request("POST", "/v1/token", data=form))
        if not reply.is_success:
            raise ServiceError(f"{email} cannot sign in: {reply}")
        return str(reply.body["access_token"])

    async def register(self, login: Login, full_name: str) -> Reply:
        """Register a user. 409 means that the address is already taken."""
        body = {"email": login.email, "full_name": full_name, "password": login.password}
        return await self._send(self._http.build_request("POST", "/v1/users", json=body))

    async def _send(self, request: httpx2.Request) -> Reply:
        delay = _BACKOFF_FIRST
        while True:
            asked = 0.0
            try:
                response = await self._http.send(request)
                reply = _reply_of(response)
            except httpx2.TransportError as error:
                trouble = f"{type(error).__name__} {error}".strip()
            else:
                if not _may_pass(reply):
                    self.patience.progress()
                    return reply
                trouble = str(reply)
                self.limited += reply.status == httpx2.codes.TOO_MANY_REQUESTS
                asked = _retry_after(response)
            if self.patience.exhausted():
                raise ServiceError(
                    f"the service at {self._http.base_url} has not answered successfully for "
                    f"{self.patience.seconds:.0f} s; the last error, for {request.method} {request.url.path}: "
                    f"{trouble}. Restart the service and repeat the command: it continues where it stopped"
                )
            # The jitter comes on top of what the service asks for: all its clients wait for the same moment.
            await asyncio.sleep(asked + delay * random.uniform(0.5, 1.0))  # noqa: S311
            delay = min(delay * 2, _BACKOFF_LAST)


def open_http(url: str, clients: int) -> httpx2.AsyncClient:
    """A client for the service at this address, with at most twice as many connections as `clients`.

    Raises `ServiceError` if it is not an address.
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ServiceError(f"{url!r} is not a URL: {error}") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise ServiceError(f"{url!r} is not the URL of a service; expected something like http://127.0.0.1:8000")
    return httpx2.AsyncClient(
        base_url=address,
        timeout=REQUEST_SECONDS,
        limits=httpx2.Limits(max_connections=2 * clients, max_keepalive_connections=2 * clients),
        # The user's proxy must not be used for the loopback address.
        trust_env=address.host not in _LOOPBACK,
    )


def expect(reply: Reply, what: str) -> Reply:
    """The reply, if it is a success. Raises `ServiceError` otherwise."""
    if not reply.is_success:
        raise ServiceError(f"{what} returned {reply}")
    return reply


async def for_each(items: Iterable[ItemT], work: Callable[[ItemT], Awaitable[None]], clients: int) -> None:
    """Do `work` for every item, in order, `clients` at a time. The first error cancels the rest."""
    queue = iter(items)

    async def client() -> None:
        for item in queue:
            await work(item)

    await together(*(client() for _ in range(clients)))


async def together(*parts: Awaitable[None]) -> None:
    """Run all parts concurrently. The first error cancels the others and is raised unchanged."""

    async def run(part: Awaitable[None]) -> None:
        await part

    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(run(part))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _reply_of(response: httpx2.Response) -> Reply:
    try:
        body = response.json() if response.content else None
    except ValueError:
        body = None
    code = body.get("code", "") if isinstance(body, dict) and not response.is_success else ""
    return Reply(response.status_code, body, str(code))


def _may_pass(reply: Reply) -> bool:
    return reply.status == 429 or reply.status >= 500 or (reply.status == 409 and reply.code == "request_in_flight")


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
