"""Single transfers over HTTP: the code of each refusal, and what a dry run reports."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.conftest import BOTH_PATHS
from tests.factories import CONFIRMED, make_operator, make_user

pytestmark = BOTH_PATHS

BAD_AMOUNTS = [
    "0",
    "0.00",
    "-1",
    "-0.01",
    "1.001",
    "1e2",
    "1E2",
    "NaN",
    "Infinity",
    "-Infinity",
    "",
    " 1",
    "+1",
    "1,00",
    "01",
    "٣",
    "9" * 17,
    "9" * 400,
    1,
    1.5,
    True,
    None,
    [],
    {},
]
"""Invalid amounts, as they would be in the request's JSON."""


async def close_account(api: Api, user: User) -> None:
    async with api.database.engine.begin() as connection:
        statement = text("UPDATE accounts SET closed_at = now() WHERE user_id = :id")
        await connection.execute(statement, {"id": user.id})


async def test_a_transfer_moves_credits_and_says_so(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)

    reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": receiver.id, "amount": "10", "note": "rent"})

    assert reply.status_code == 201
    made = reply.json()
    assert made.keys() == {"id", "kind", "state", "amount", "note", "created_at", "dry_run"}
    assert (made["kind"], made["state"], made["amount"], made["note"]) == ("transfer", "posted", "10.00", "rent")
    assert made["dry_run"] is False
    stored = "SELECT id::text FROM transfers WHERE kind = 'transfer' AND created_at = CAST(:at AS timestamptz)"
    assert await api.scalar(stored.replace(":at", f"'{made['created_at']}'")) == made["id"]
    assert [(await api.credits_of(user))[0] for user in (sender, receiver)] == [0, 10]
    event = "SELECT payload ->> 'transfer_id' FROM events WHERE payload ->> 'kind' = 'transfer'"
    assert await api.scalar(event) == made["id"]
    await api.assert_books_balance()


async def test_each_refusal_has_its_own_code_and_names_the_field(api: Api) -> None:
    sender = await make_user(api.database, credits="10")
    closed = await make_user(api.database)
    await close_account(api, closed)
    receiver = await make_user(api.database)
    before = await api.everything()
    cases = [
        (receiver.id, "10.01", 402, "insufficient_credits", "#/amount"),
        (sender.id, "1", 422, "same_account", "#/to_user_id"),
        (closed.id, "1", 422, "unknown_recipient", "#/to_user_id"),
        (2**62, "1", 422, "unknown_recipient", "#/to_user_id"),
    ]
    for to_user_id, amount, status, code, pointer in cases:
        reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": to_user_id, "amount": amount})
        assert_problem(reply, status, code, pointers=[pointer])
    assert await api.everything() == before


async def test_a_deleted_user_is_as_unknown_as_one_who_never_existed(api: Api) -> None:
    sender = await make_user(api.database, credits="10")
    deleted, inactive = await make_user(api.database), await make_user(api.database, is_active=False)
    await api.delete("/v1/users/me", by=deleted, json=CONFIRMED)
    told = set()
    for user_id in (deleted.id, inactive.id, 2**62):
        reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": user_id, "amount": "1"})
        problem = assert_problem(reply, 422, "unknown_recipient")
        told.add((problem["detail"], str(problem["errors"])))
    assert len(told) == 1, "the answers differ"


async def test_another_users_account_is_refused_whether_it_exists_or_not(api: Api) -> None:
    thief, victim = await make_user(api.database), await make_user(api.database, credits="10")
    told = set()
    for user_id in (victim.id, 2**62):
        wanted = {"to_user_id": thief.id, "amount": "1", "from_user_id": user_id}
        problem = assert_problem(await api.post("/v1/transfers", by=thief, json=wanted), 422, "invalid_input")
        told.add((problem["detail"], str(problem["errors"])))
    assert len(told) == 1
    assert (await api.credits_of(victim))[0] == 10


async def test_a_closed_account_sends_nothing(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    await close_account(api, sender)
    before = await api.everything()
    reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": receiver.id, "amount": "1"})
    assert_problem(reply, 409, "account_closed")
    assert await api.everything() == before


@pytest.mark.parametrize("amount", BAD_AMOUNTS, ids=lambda amount: repr(amount)[:20])
async def test_an_invalid_amount_is_refused_wherever_credits_move(api: Api, amount: Any) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database, credits="10")
    before = await api.everything()
    one = {"to_user_id": operator.id, "amount": amount}
    top_up = {"user_id": user.id, "amount": amount}
    batch = {"mode": "independent", "transfers": [{**one, "amount": "1"}, one]}

    reply = await api.post("/v1/transfers", by=user, json=one)
    assert_problem(reply, 422, "amount_invalid", pointers=["#/amount"])
    reply = await api.post("/v1/top-ups", by=operator, json=top_up)
    assert_problem(reply, 422, "amount_invalid", pointers=["#/amount"])
    reply = await api.post("/v1/transfers/batch", by=user, json=batch)
    assert_problem(reply, 422, "amount_invalid", pointers=["#/transfers/1/amount"])
    assert await api.everything() == before


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400", "9" * 5000])
async def test_numbers_that_json_does_not_have_are_not_amounts(api: Api, literal: str) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    before = await api.everything()
    body = f'{{"to_user_id": {receiver.id}, "amount": {literal}}}'
    reply = await api.post(
        "/v1/transfers", by=sender, content=body.encode(), headers={"Content-Type": "application/json"}
    )
    assert reply.status_code in (400, 422)
    assert_problem(reply, reply.status_code, reply.json()["code"])
    assert await api.everything() == before


async def test_a_wrong_amount_together_with_another_fault_is_invalid_input(api: Api) -> None:
    sender = await make_user(api.database)
    reply = await api.post("/v1/transfers", by=sender, json={"to_user_id": "7", "amount": "0"})
    assert_problem(reply, 422, "invalid_input", pointers=["#/to_user_id", "#/amount"])


async def test_a_dry_run_reports_what_would_happen_and_writes_nothing(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    before = await api.everything()
    wanted = {"to_user_id": receiver.id, "amount": "7", "note": "rent"}

    would = await api.post("/v1/transfers", by=sender, key="k-1", json={**wanted, "dry_run": True})
    refused = await api.post("/v1/transfers", by=sender, key="k-2", json={**wanted, "amount": "11", "dry_run": True})

    assert would.status_code == 200
    assert would.json()["dry_run"] is True
    assert would.json()["id"] is None
    assert_problem(refused, 402, "insufficient_credits", pointers=["#/amount"])
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0
    # The keys are still free, even for the same body.
    for key in ("k-1", "k-2"):
        again = await api.post("/v1/transfers", by=sender, key=key, json={**wanted, "amount": "1", "dry_run": True})
        assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, None)
    made = await api.post("/v1/transfers", by=sender, key="k-1", json=wanted)
    assert made.status_code == 201
    assert {**made.json(), "id": None, "dry_run": True, "created_at": ""} == {**would.json(), "created_at": ""}


async def test_a_dry_run_does_not_wait_for_locks(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    wanted = {"to_user_id": receiver.id, "amount": "7", "dry_run": True}
    async with api.database.engine.begin() as elsewhere:
        await elsewhere.execute(text("SELECT 1 FROM accounts FOR UPDATE"))
        reply = await asyncio.wait_for(api.post("/v1/transfers", by=sender, json=wanted), 5)
    assert reply.status_code == 200


async def test_a_transfer_that_the_database_objects_to_is_refused_and_the_refusal_is_kept(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    await refuse_notes_of_poison(api)
    before = await api.everything()
    wanted = {"to_user_id": receiver.id, "amount": "1", "note": "poison"}
    first = await api.post("/v1/transfers", by=sender, key="k", json=wanted)
    assert_problem(first, 422, "transfer_refused", pointers=["#"])
    again = await api.post("/v1/transfers", by=sender, key="k", json=wanted)
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    assert await api.everything() == before


async def refuse_notes_of_poison(api: Api) -> None:
    """A rule that only the database knows."""
    async with api.database.engine.begin() as connection:
        await connection.execute(
            text("""
                CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF NEW.note LIKE 'poison%' THEN
                        RAISE EXCEPTION 'no poison here' USING ERRCODE = '23514';
                    END IF;
                    RETURN NEW;
                END $$
            """)
        )
        await connection.execute(
            text(
                "CREATE TRIGGER refuse_poison BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION refuse_poison()"
            )
        )
