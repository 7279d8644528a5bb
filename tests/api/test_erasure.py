"""Erasing what is stored about a user leaves no copy and keeps the books."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.main import app as cli
from services.credits.ledger.repository import LedgerRepository
from services.fields import now
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.rights import Role
from tests.api.audited import run_audit
from tests.api.client import Api, assert_problem, order_of
from tests.api.personal import EMAIL, MINE, NAME, canary, copies, lines, spent
from tests.api.programs import make_key, with_key
from tests.factories import CONFIRMED, PASSWORD, make_admin, make_operator, make_product, make_user
from worker.jobs.retention import old_keys


async def let_replies_expire(api: Api) -> None:
    """Let the time of stored replies pass, and run what the scheduled job runs."""
    await api.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    async with UnitOfWork(api.database.write) as uow:
        await take_slice(uow, old_keys(timedelta(seconds=api.settings.idempotency_retention)), None, 1000)
        await uow.commit()


async def erase(api: Api, user: User, **more: Any) -> Any:
    return await api.delete(MINE, by=user, json={"current_password": PASSWORD, **more})


async def test_an_erased_user_leaves_no_copy_and_the_books_are_right(api: Api) -> None:
    user = await canary(api)
    await spent(api, user)
    assert await copies(api) != []
    before = await api.books()
    reply = await erase(api, user)
    assert reply.status_code == 204, reply.text
    # A reply that an operator got about the order has its reference, until it expires.
    assert await copies(api) == ["idempotency_keys"]
    assert await api.scalar("SELECT count(*) FROM idempotency_keys WHERE caller_id = :id", id=user.id) == 0
    await let_replies_expire(api)
    assert await copies(api) == []
    left = "SELECT concat_ws(' ', email, full_name, is_active, totp_since IS NULL) FROM users WHERE id = :id"
    assert await api.scalar(left, id=user.id) == f"erased-{user.id}@erased.invalid erased f t"
    # What they bought and paid is still there, under their id.
    assert await api.scalar("SELECT status FROM orders WHERE buyer_id = :id", id=user.id) == "fulfilled"
    await api.assert_books_balance()
    assert (await api.books()) == before
    _, found = await run_audit(api.database)
    assert found == []
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.erased'"
    assert await api.scalar(recorded) == f"user:{user.id} user/{user.id}"
    assert await api.scalar("SELECT count(*) FROM events WHERE type = 'user.erased'") == 1


async def test_nothing_lets_an_erased_user_in_again(api: Api) -> None:
    user, admin = await canary(api), await make_admin(api.database)
    await spent(api, user)
    signed_in = (await api.sign_in(EMAIL)).json()
    key = with_key(await make_key(api, user, "orders:read"))
    assert (await erase(api, user)).status_code == 204
    assert_problem(await api.get("/v1/users/me", by=user), 401, "unauthenticated")
    bearer = {"Authorization": f"Bearer {signed_in['access_token']}"}
    assert_problem(await api.get("/v1/users/me", headers=bearer), 401, "unauthenticated")
    refresh = {"grant_type": "refresh_token", "refresh_token": signed_in["refresh_token"]}
    assert (await api.client.post("/v1/token", data=refresh)).status_code == 401
    assert_problem(await api.get("/v1/orders", headers=key), 401, "unauthenticated")
    for email in (EMAIL, f"erased-{user.id}@erased.invalid"):
        for password in (PASSWORD, "erased"):
            assert (await api.sign_in(email, password)).status_code == 401
    assert_problem(await api.post(f"/v1/users/{user.id}/restore", by=admin), 404, "not_found")
    assert_problem(await api.get(f"/v1/users/{user.id}/personal-data.ndjson", by=admin), 404, "not_found")
    again = await api.delete(f"/v1/users/{user.id}/personal-data", by=admin, json=CONFIRMED)
    assert_problem(again, 404, "not_found")
    # The database says so as well.
    with pytest.raises(Exception, match="ck_users_erased"):
        await api.execute("UPDATE users SET deleted_at = NULL WHERE id = :id", id=user.id)


async def test_the_address_is_free_and_its_next_owner_gets_nothing_of_the_erased_user(api: Api) -> None:
    user = await canary(api)
    await spent(api, user)
    assert (await erase(api, user)).status_code == 204
    wanted = {"email": EMAIL, "full_name": "Someone Else", "password": PASSWORD}
    registered = await api.post("/v1/users", json=wanted)
    assert registered.status_code == 201, registered.text
    assert registered.json()["id"] != user.id
    signed_in = (await api.sign_in(EMAIL)).json()["access_token"]
    bearer = {"Authorization": f"Bearer {signed_in}"}
    assert (await api.get("/v1/orders", headers=bearer)).json()["data"] == []
    assert (await api.get("/v1/accounts/me", headers=bearer)).json()["posted"] == "0.00"


async def test_the_audit_log_keeps_no_reference_that_an_operator_has_filtered_by(api: Api) -> None:
    user, operator = await canary(api), await make_operator(api.database)
    exported = await api.get(f"/v1/orders.csv?as=everybody&filter=reference:eq:for {NAME}", by=operator)
    assert NAME in exported.text
    filters = "SELECT details ->> 'filters' FROM audit_log WHERE action = 'orders.exported'"
    assert await api.scalar(filters) == "reference:eq:..."
    await spent(api, user)
    assert (await erase(api, user)).status_code == 204
    await let_replies_expire(api)
    assert await copies(api) == []


async def test_mails_and_events_that_wait_do_not_bring_the_data_back(api: Api) -> None:
    user = await canary(api)
    await spent(api, user)
    assert await api.scalar("SELECT count(*) FROM mails") == 1
    assert await api.scalar("SELECT count(*) FROM totp_secrets") == 1
    assert (await erase(api, user)).status_code == 204
    assert await api.scalar("SELECT count(*) FROM mails") == 0
    for table in ("one_time_tokens", "totp_secrets", "unverified_emails"):
        assert await api.scalar(f"SELECT count(*) FROM {table}") == 0, table
    for table in ("sessions", "api_keys"):
        assert await api.scalar(f"SELECT count(*) FROM {table} WHERE user_id = :id", id=user.id) == 0, table
    await api.process()
    await let_replies_expire(api)
    assert await copies(api) == []


async def test_a_deleted_user_can_be_erased(api: Api) -> None:
    user, admin = await canary(api), await make_admin(api.database)
    await spent(api, user)
    assert (await api.delete(f"/v1/users/{user.id}", by=admin)).status_code == 204
    assert (await api.delete(f"/v1/users/{user.id}/personal-data", by=admin, json=CONFIRMED)).status_code == 204
    await let_replies_expire(api)
    assert await copies(api) == []


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("credits", "credits are left"),
        ("order", "orders are open"),
        ("sale", "orders of the user's products"),
        ("hold", "credits are held"),
        ("receive", "payments to the user are pending"),
        ("adjustment", "wait for approval"),
    ],
)
async def test_a_user_who_is_still_needed_is_not_erased(api: Api, cause: str, said: str) -> None:
    user, operator = await make_user(api.database), await make_operator(api.database)
    other = await make_user(api.database, credits="100")
    match cause:
        case "credits":
            user = await make_user(api.database, credits="7.50")
        case "order" | "sale":
            product = await make_product(api.database, seller=user if cause == "sale" else other)
            buyer = other if cause == "sale" else user
            # Without credits, it waits for payment.
            await api.place(buyer, (product, 1))
        case "hold" | "receive":
            user = await make_user(api.database, credits="5")
            sender, recipient = (user, other) if cause == "hold" else (other, user)
            until = (now() + timedelta(hours=1)).isoformat()
            wanted = {"to_user_id": recipient.id, "amount": "5.00", "expires_at": until}
            held = await api.post("/v1/holds", by=sender, json=wanted)
            assert held.status_code == 201, held.text
        case "adjustment":
            large = {"user_id": user.id, "amount": "9000.00", "reason": "goodwill"}
            assert (await api.post("/v1/adjustments", by=operator, json=large)).json()["state"] == "pending"
    before = await api.everything()
    refused = await erase(api, user)
    assert_problem(refused, 409, "erasure_blocked")
    assert said in refused.json()["detail"]
    after = await api.everything()
    assert {name for name in before if before[name] != after[name]} <= {"failed_attempts"}


async def test_an_order_that_is_placed_during_the_erasure_is_found_or_refused(api: Api, monkeypatch: Any) -> None:
    buyer, _, product = await api.shop(credits="0")
    locked = LedgerRepository.lock_account
    placed = []

    async def lock_account(self: LedgerRepository, user_id: int) -> Any:
        # Just before the account is locked, and so before the check.
        placed.append(await api.post("/v1/orders", by=buyer, json=order_of((product, 1))))
        return await locked(self, user_id)

    monkeypatch.setattr(LedgerRepository, "lock_account", lock_account)
    refused = await erase(api, buyer)
    assert placed[0].status_code == 201, placed[0].text
    assert_problem(refused, 409, "erasure_blocked")


async def test_an_erasure_locks_orders_before_the_account_as_a_refund_does(api: Api) -> None:
    user = await canary(api)
    await spent(api, user)
    lock_order = text("SELECT FROM orders WHERE buyer_id = :id FOR NO KEY UPDATE")
    lock_account = text("SELECT FROM accounts WHERE user_id = :id FOR NO KEY UPDATE")
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with api.database.engine.connect() as refund:
        await refund.execute(lock_order, {"id": user.id})
        erasing = asyncio.create_task(erase(api, user))
        async with asyncio.timeout(10):
            while not await api.scalar(waits):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await refund.execute(text("SET LOCAL lock_timeout = '300ms'"))
        await refund.execute(lock_account, {"id": user.id})
        await refund.rollback()
    assert (await erasing).status_code == 204


async def test_products_of_an_erased_seller_go_off_sale(api: Api) -> None:
    seller = await make_user(api.database)
    product = await make_product(api.database, seller=seller)
    assert (await erase(api, seller)).status_code == 204
    assert await api.scalar("SELECT is_active FROM products WHERE id = :id", id=product.id) is False
    assert await api.scalar("SELECT closed_at IS NOT NULL FROM accounts WHERE user_id = :id", id=seller.id)


async def test_erasing_needs_the_password_and_of_others_the_scope(api: Api) -> None:
    user, admin = await make_user(api.database), await make_admin(api.database)
    assert_problem(await erase(api, user, current_password="a wrong password"), 403, "wrong_password")
    path = f"/v1/users/{user.id}/personal-data"
    for role in set(Role) - {Role.admin}:
        caller = await make_user(api.database, role=role)
        assert_problem(await api.delete(path, by=caller, json=CONFIRMED), 403, "forbidden")
    wrong = {"current_password": "a wrong password"}
    assert_problem(await api.delete(path, by=admin, json=wrong), 403, "wrong_password")
    own = f"/v1/users/{admin.id}/personal-data"
    assert_problem(await api.delete(own, by=admin, json=CONFIRMED), 422, "invalid_input")
    assert_problem(await erase(api, admin), 409, "conflict")
    assert (await api.delete(path, by=admin, json=CONFIRMED)).status_code == 204
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.erased'"
    assert await api.scalar(recorded) == f"user:{admin.id} user/{user.id}"


@pytest.mark.usefixtures("_settings_of_commands")
async def test_commands_export_and_erase(api: Api, tmp_path: Path) -> None:
    user = await canary(api)
    file = tmp_path / "all.ndjson"

    async def run(*arguments: str, code: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["users", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    assert "Wrote" in await run("export", EMAIL, "--output", str(file))
    assert lines(file.read_text())[0]["email"] == EMAIL
    assert file.stat().st_mode & 0o777 == 0o600
    assert "File exists" in await run("export", str(user.id), "--output", str(file), code=1)
    assert "orders are open" in await run("erase", EMAIL, "--yes", code=1)
    await spent(api, user)
    assert f"User {user.id} is erased" in await run("erase", EMAIL, "--yes")
    assert "there is no user" in await run("erase", str(user.id), "--yes", code=1)
    await let_replies_expire(api)
    assert await copies(api) == []
    acts = "SELECT string_agg(action || ' ' || actor, ', ' ORDER BY id) FROM audit_log WHERE actor LIKE 'command:%'"
    said = await api.scalar(acts)
    assert "user.exported command:users export" in said
    assert "user.erased command:users erase" in said


async def test_the_names_of_waiting_registrations_are_erased_with_the_address(api: Api) -> None:
    user = await make_user(api.database, email=EMAIL)
    wanted = {"email": EMAIL, "full_name": NAME, "hashed": "x"}
    statement = """
        WITH waits AS (INSERT INTO unverified_emails (email, full_name, hashed_password, expires_at)
            VALUES (:email, :full_name, :hashed, now() + interval '1 day') RETURNING id, email)
        INSERT INTO mails (kind, email, unverified_id) SELECT 'verification', email, id FROM waits
    """
    await api.execute(statement, **wanted)
    assert await copies(api) == ["mails", "unverified_emails", "users"]
    assert (await erase(api, user)).status_code == 204
    assert await copies(api) == []
