"""Requests to a service that fails for a while: what is sent again, with what, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from services.cli import client
from services.cli.client import Login, Patience, Reply, Service, ServiceError, for_each

Answer = httpx2.Response | Exception


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(client, "_BACKOFF_LAST", 0.001)


def problem(status: int, code: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "detail": "because"}, headers={"Retry-After": "0"})


class FakeApi:
    """Gives the answers in turn and then repeats the last one; sign-ins always work."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[httpx2.Request] = []
        self.sign_ins = 0
        self._answers = list(answers)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/token":
            self.sign_ins += 1
            return httpx2.Response(200, json={"access_token": f"token-{self.sign_ins}"})
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def service_of(api: Callable[[httpx2.Request], httpx2.Response], seconds: float = 5.0) -> AsyncIterator[Service]:
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(api), base_url="http://service") as http:
        yield Service(http, Patience(seconds))


async def place(service: Service, who: Login | None = None) -> Reply:
    return await service.call(who or Login("a@b.example", "secret"), "POST", "/v1/orders", body={"n": 1}, key="536365")


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ConnectError("refused"),
        httpx2.RemoteProtocolError("server disconnected"),
        httpx2.ReadTimeout("too slow"),
        problem(409, "request_in_flight"),
        problem(429, "too_many_requests"),
        problem(500, "internal_error"),
        problem(503, "unavailable"),
        httpx2.Response(502, text="<html>bad gateway</html>"),
    ],
    ids=lambda trouble: str(getattr(trouble, "status_code", type(trouble).__name__)),
)
async def test_transient_failures_are_retried_with_the_same_key_and_body(trouble: Answer) -> None:
    api = FakeApi(trouble, trouble, httpx2.Response(201, json={"id": 7}))
    async with service_of(api) as service:
        reply = await place(service)
    assert (reply.status, reply.body) == (201, {"id": 7})
    assert len(api.requests) == 3
    assert {request.headers["Idempotency-Key"] for request in api.requests} == {"536365"}
    assert len({request.content for request in api.requests}) == 1


async def test_after_too_many_requests_it_waits_as_long_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("services.cli.client.asyncio.sleep", sleep)
    limited = httpx2.Response(429, headers={"Retry-After": "37"}, json={"code": "rate_limited"})
    api = FakeApi(limited, problem(503, "unavailable"), httpx2.Response(201, json={"id": 7}))
    async with service_of(api) as service:
        assert (await place(service)).status == 201
        assert service.limited == 1
    first, second = waited
    assert 37 < first < 38
    assert second < 1


@pytest.mark.parametrize("refusal", [problem(409, "already_exists"), problem(422, "invalid_input")])
async def test_a_definite_refusal_is_the_answer(refusal: httpx2.Response) -> None:
    api = FakeApi(refusal)
    async with service_of(api) as service:
        reply = await place(service)
    assert not reply.is_success
    assert len(api.requests) == 1


async def test_an_expired_token_is_renewed_once_for_all_who_share_it() -> None:
    def api(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/token":
            return httpx2.Response(200, json={"access_token": "fresh"})
        good = request.headers["Authorization"] == "Bearer fresh"
        return httpx2.Response(201 if good else 401, json={})

    who = Login("a@b.example", "secret", token="expired")
    async with service_of(api) as service:
        replies = await asyncio.gather(*(place(service, who) for _ in range(5)))
    assert [reply.status for reply in replies] == [201] * 5


async def test_many_requests_of_one_user_sign_in_once() -> None:
    api = FakeApi(httpx2.Response(201, json={}))
    who = Login("a@b.example", "secret")
    async with service_of(api) as service:
        await asyncio.gather(*(place(service, who) for _ in range(5)))
    assert api.sign_ins == 1


async def test_a_token_that_is_never_accepted_is_an_error_and_not_an_endless_loop() -> None:
    api = FakeApi(problem(401, "unauthenticated"))
    async with service_of(api) as service:
        with pytest.raises(ServiceError, match="401 unauthenticated"):
            await place(service)
    assert len(api.requests) == 2


async def test_a_wrong_password_is_reported_clearly() -> None:
    async with service_of(lambda _: problem(401, "unauthenticated")) as service:
        with pytest.raises(ServiceError, match=r"a@b\.example cannot sign in: 401 unauthenticated because"):
            await place(service)


async def test_a_service_that_stays_away_ends_in_an_error_that_says_so() -> None:
    api = FakeApi(httpx2.ConnectError("refused"))
    async with service_of(api, seconds=0.05) as service:
        with pytest.raises(ServiceError, match=r"has not answered successfully .* ConnectError refused"):
            await place(service)


def test_patience_counts_from_the_first_trouble_after_the_last_progress() -> None:
    seconds = 0.0
    patience = Patience(60, clock=lambda: seconds)
    seconds = 100
    assert not patience.exhausted()
    seconds = 159
    assert not patience.exhausted()
    patience.progress()
    seconds = 1000
    assert not patience.exhausted()
    seconds = 1060
    assert patience.exhausted()


async def test_a_list_is_read_to_its_last_page() -> None:
    def api(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/token":
            return httpx2.Response(200, json={"access_token": "token"})
        assert request.url.params.get_list("filter") == ["a:eq:1", "b:eq:2"]
        last = request.url.params.get("cursor") == "next"
        return httpx2.Response(200, json={"data": [2] if last else [1], "next_cursor": None if last else "next"})

    async with service_of(api) as service:
        rows = await service.read_pages(Login("a@b.example", "s"), "/v1/orders", {"filter": ["a:eq:1", "b:eq:2"]})
    assert rows == [1, 2]


async def test_work_begins_in_order_with_a_limit_on_how_much_runs_at_once() -> None:
    begun: list[int] = []
    running = most = 0

    async def work(item: int) -> None:
        nonlocal running, most
        begun.append(item)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each(range(10), work, clients=3)
    assert begun == list(range(10))
    assert most == 3


async def test_the_first_error_stops_the_work_and_is_raised_as_it_is() -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(100)

    async def work(item: int) -> None:
        if item == 5:
            raise ServiceError("gone")
        await asyncio.sleep(0)
        done.append(item)

    with pytest.raises(ServiceError, match="gone"):
        await for_each(items(), work, clients=2)
    assert len(done) < 10
