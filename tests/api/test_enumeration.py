"""Which users there are, nobody finds out for nothing: not by dry runs, and not by requests that cannot take effect."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from services.fields import now
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.conftest import BOTH_PATHS
from tests.factories import CONFIRMED, make_operator, make_user

pytestmark = BOTH_PATHS

NOBODY = 2**40


@pytest.fixture
async def others(api: Api) -> Mapping[str, int]:
    """Ids of users in every state, and one that does not exist."""
    there, rich, inactive, deleted, closed = [await make_user(api.database, credits="5") for _ in range(5)]
    operator = await make_operator(api.database)
    await api.execute("UPDATE users SET is_active = false WHERE id = :id", id=inactive.id)
    await api.delete("/v1/users/me", by=deleted, json=CONFIRMED)
    assert (await api.post(f"/v1/accounts/{closed.id}/close", by=operator)).status_code == 200
    ids = {"there": there, "rich": rich, "inactive": inactive, "deleted": deleted, "closed": closed}
    return {**{name: user.id for name, user in ids.items()}, "nobody": NOBODY}


async def answers(api: Api, by: User, ids: Mapping[str, int], path: str, body: Any) -> dict[str, str]:
    """The reply about each user, without what differs anyway."""
    told = {}
    for name, user_id in ids.items():
        reply = await api.post(path, by=by, json=body(user_id))
        text = re.sub(r'"(request_id|created_at|id)":"[^"]+"', "", reply.text)
        told[name] = f"{reply.status_code} {text}"
    return told


def transfer(user_id: int, amount: str = "1.00", **more: Any) -> dict[str, Any]:
    return {"to_user_id": user_id, "amount": amount, **more}


def held(user_id: int, amount: str = "1.00") -> dict[str, Any]:
    return transfer(user_id, amount, expires_at=(now() + timedelta(hours=1)).isoformat())


def batch(mode: str, *items: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
    return {"mode": mode, "transfers": list(items), "dry_run": dry_run}


async def test_a_dry_run_answers_the_same_for_any_recipient(api: Api, others: Mapping[str, int]) -> None:
    sender = await make_user(api.database, credits="10")
    before = await api.everything()
    for path, body in (
        ("/v1/transfers", lambda one: transfer(one, dry_run=True)),
        ("/v1/transfers", lambda one: transfer(one, "10.01", dry_run=True)),
        ("/v1/transfers/batch", lambda one: batch("independent", transfer(one), transfer(one), dry_run=True)),
        ("/v1/transfers/batch", lambda one: batch("atomic", transfer(one), transfer(one), dry_run=True)),
        (
            "/v1/transfers/batch",
            lambda one: batch("independent", transfer(one, linked=True), transfer(one), dry_run=True),
        ),
    ):
        told = await answers(api, sender, others, path, body)
        assert len(set(told.values())) == 1, (path, told)
    assert await api.everything() == before


async def test_a_payer_without_credits_gets_the_same_answer_for_any_recipient(
    api: Api, others: Mapping[str, int]
) -> None:
    poor, shut = await make_user(api.database, credits="1"), await make_user(api.database, credits="1")
    operator = await make_operator(api.database)
    await api.post(f"/v1/accounts/{shut.id}/close", by=operator)
    for by, code in ((poor, "insufficient_credits"), (shut, "account_closed")):
        for path, body in (
            ("/v1/transfers", lambda one: transfer(one, "1.01")),
            ("/v1/holds", lambda one: held(one, "1.01")),
            ("/v1/transfers/batch", lambda one: batch("independent", transfer(one, "1.01"))),
            ("/v1/transfers/batch", lambda one: batch("atomic", transfer(one, "1.01"))),
        ):
            told = await answers(api, by, others, path, body)
            assert len(set(told.values())) == 1, (path, told)
            assert f'"code":"{code}"' in told["there"]


@pytest.mark.parametrize("mode", ["atomic", "independent"])
async def test_a_batch_that_is_bound_to_fail_does_not_say_which_recipients_there_are(
    api: Api, others: Mapping[str, int], mode: str
) -> None:
    sender = await make_user(api.database, credits="10")
    before = await api.everything()
    for last in (transfer(sender.id), transfer(others["there"], "9.01"), transfer(others["there"], linked=True)):
        told = await answers(
            api,
            sender,
            others,
            "/v1/transfers/batch",
            lambda one, last=last: batch(mode, transfer(one, linked=True), last),
        )
        assert len(set(told.values())) == 1, told
    assert await api.everything() == before


async def test_recipients_who_cannot_receive_credits_are_answered_like_unknown_ones(
    api: Api, others: Mapping[str, int]
) -> None:
    sender = await make_user(api.database, credits="10")
    away = {name: others[name] for name in ("inactive", "deleted", "closed", "nobody")}
    for path, body in (
        ("/v1/transfers", transfer),
        ("/v1/holds", held),
        ("/v1/transfers/batch", lambda one: batch("atomic", transfer(one), transfer(others["there"]))),
        ("/v1/transfers/batch", lambda one: batch("independent", transfer(one))),
    ):
        told = await answers(api, sender, away, path, body)
        assert len(set(told.values())) == 1, (path, told)
        assert '"code":"unknown_recipient"' in told["nobody"]
    assert (await api.credits_of(sender))[0] == 10
    # To find out that someone is there costs credits.
    reply = await api.post("/v1/transfers", by=sender, json=transfer(others["there"], "0.01"))
    assert reply.status_code == 201
    assert str((await api.credits_of(sender))[0]) == "9.99"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/users/{id}"),
        ("GET", "/v1/users/{id}/products"),
        ("GET", "/v1/users/{id}/api-keys"),
        ("GET", "/v1/reports/sales?seller_id={id}"),
        ("POST", "/v1/accounts/{id}/close"),
    ],
)
async def test_what_is_about_another_user_is_refused_alike(
    api: Api, others: Mapping[str, int], method: str, path: str
) -> None:
    by = await make_user(api.database)
    told = set()
    for user_id in others.values():
        reply = await api.request(method, path.replace("{id}", str(user_id)), by=by)
        problem = assert_problem(reply, 403, "forbidden")
        told.add((problem["detail"], str(problem["errors"])))
    assert len(told) == 1
