"""What is stored about a user: its export is complete, and its erasure leaves no copy and keeps the books."""

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary, text
from typer.testing import CliRunner

from services.cli.main import app as cli
from services.credits.ledger.repository import LedgerRepository
from services.credits.models import NOTED
from services.fields import now
from services.models import metadata
from services.privileges import TABLES
from services.sweeps.service import take_slice
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.personal import service
from services.users.personal.queries import NOT_EXPORTED, SOURCES
from services.users.personal.repository import columns_of
from services.users.rights import Role
from tests.api.audited import run_audit
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import make_key, with_key
from tests.factories import CONFIRMED, PASSWORD, make_admin, make_operator, make_product, make_user
from worker.jobs.retention import old_keys

NAME = "Canary Person"
EMAIL = "canary.person@example.com"
MINE = "/v1/users/me/personal-data"


async def canary(api: Api) -> User:
    """A user who has used everything there is, with a name and an address that are found wherever they are stored."""
    user = await make_user(api.database, email=EMAIL, full_name=NAME)
    assert (await api.sign_in(EMAIL)).status_code == 200
    assert (await api.sign_in(EMAIL, "a wrong password")).status_code == 401
    await make_key(api, user, name=f"key of {NAME}")
    await api.post("/v1/users/me/totp", by=user, key=None, json=CONFIRMED)
    assert (await api.client.post("/v1/password-resets", json={"email": EMAIL})).status_code == 202
    token = """
        INSERT INTO one_time_tokens (hash, purpose, user_id, email, expires_at)
        VALUES (sha256('x'), 'password_reset', :user_id, :email, now() + interval '1 hour')
    """
    await api.execute(token, user_id=user.id, email=EMAIL)
    wants = """
        INSERT INTO unverified_emails (email, user_id, expires_at)
        VALUES ('new.' || :email, :user_id, now() + interval '1 day')
    """
    await api.execute(wants, user_id=user.id, email=EMAIL)
    operator = await make_operator(api.database)
    topped = {"user_id": user.id, "amount": "20.00", "note": "welcome"}
    assert (await api.post("/v1/top-ups", by=operator, json=topped)).status_code == 201
    product = await make_product(api.database, price="20.00", stock=5)
    placed = await api.post("/v1/orders", by=user, json=order_of((product, 1), reference=f"for {NAME}"))
    assert placed.status_code == 201, placed.text
    await api.process()
    return user


async def spent(api: Api, user: User) -> None:
    """Finish what keeps the user from being erased."""
    operator = await make_operator(api.database)
    (order,) = (await api.get("/v1/orders", by=user)).json()["data"]
    fulfilled = await api.post(f"/v1/orders/{order['id']}/fulfil", by=operator)
    assert fulfilled.status_code == 200, fulfilled.text


async def copies(api: Api, *, ignoring: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """The tables that have the name or the address anywhere in a row, as text or in bytes."""
    found = []
    async with api.database.engine.connect() as connection:
        for table in sorted(table.name for table in metadata.tables.values()):
            bytes_too = [
                f"encode({column.name}, 'escape')"
                for column in metadata.tables[table].columns
                if isinstance(column.type, LargeBinary)
            ]
            whole = " || ' ' || ".join(["row::text", *(f"coalesce({one}, '')" for one in bytes_too)])
            statement = f"SELECT count(*) FROM {table} AS row WHERE {whole} ILIKE ANY (:patterns)"
            patterns = [f"%{EMAIL}%", f"%{NAME}%"]
            if (await connection.execute(text(statement), {"patterns": patterns})).scalar_one():
                found.append(table)
    return [table for table in found if table not in ignoring]


async def let_replies_expire(api: Api) -> None:
    """Let the time of stored replies pass, and run what the scheduled job runs."""
    await api.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    async with UnitOfWork(api.database.write) as uow:
        await take_slice(uow, old_keys(timedelta(seconds=api.settings.idempotency_retention)), None, 1000)
        await uow.commit()


async def erase(api: Api, user: User, **more: Any) -> Any:
    return await api.delete(MINE, by=user, json={"current_password": PASSWORD, **more})


def lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_every_table_is_exported_or_listed_with_the_reason() -> None:
    tables = {table.name for table in metadata.tables.values()}
    exported = {source.table for source in SOURCES.values()}
    assert exported | NOT_EXPORTED.keys() == tables
    assert not exported & NOT_EXPORTED.keys()
    assert all(reason for reason in NOT_EXPORTED.values())


def test_every_reference_to_a_user_is_followed_or_listed() -> None:
    of_staff = {"requested_by", "decided_by", "operator_id"}
    for table in metadata.tables.values():
        for column in table.columns:
            if column.name in of_staff or not any(key.target_fullname == "users.id" for key in column.foreign_keys):
                continue
            conditions = [source.condition for source in SOURCES.values() if source.table == table.name]
            assert table.name in NOT_EXPORTED or any(column.name in one for one in conditions), column


def test_no_secret_is_exported() -> None:
    for part, source in SOURCES.items():
        columns = metadata.tables[source.table].columns
        assert source.without.keys() <= set(columns.keys()), part
        assert not [name for name in columns_of(part) if isinstance(columns[name].type, LargeBinary)], part
        assert not [name for name in columns_of(part) if "hash" in name or "password" in name], part
        # The replica's role cannot select them: each export would fail there, and be repeated on the primary.
        assert not set(columns_of(part)) & set(TABLES[source.table].secret), part


async def test_an_export_has_notes_of_transfers_and_not_the_reasons_of_the_staff(api: Api) -> None:
    user, other = await make_user(api.database, credits="20"), await make_user(api.database)
    operator = await make_operator(api.database)
    moved = await api.post(
        "/v1/transfers", by=user, json={"to_user_id": other.id, "amount": "5.00", "note": "for lunch"}
    )
    undone = f"/v1/transfers/{moved.json()['id']}/reverse"
    assert (await api.post(undone, by=operator, json={"reason": "a suspicion"})).status_code == 201
    said = (await api.get(f"{MINE}.ndjson", by=user)).text
    assert "for lunch" in said
    assert "a suspicion" not in said
    assert [line["amount"] for line in lines(said) if line["part"] == "corrections"] == ["5.00"]


def test_notes_are_exported_of_the_kinds_of_which_users_see_them() -> None:
    kinds = ", ".join(f"'{kind}'" for kind in sorted(NOTED, reverse=True))
    assert SOURCES["transfers"].condition.endswith(f"kind IN ({kinds})")


async def test_users_export_all_that_is_stored_about_them_and_nothing_of_others(api: Api) -> None:
    user = await canary(api)
    other = await make_user(api.database, credits="5")
    await spent(api, user)
    reply = await api.get(f"{MINE}.ndjson", by=user)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Disposition"] == f'attachment; filename="user-{user.id}.ndjson"'
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines(reply.text):
        found.setdefault(line["part"], []).append(line)
    assert found["profile"][0]["email"] == EMAIL
    assert found["orders"][0]["reference"] == f"for {NAME}"
    assert [one["amount"] for one in found["entries"]] == ["20.00", "-20.00"]
    assert found["api_keys"][0]["name"] == f"key of {NAME}"
    assert {one["action"] for one in found["acts"]} >= {"user.signed_in", "key.made", "user.exported"}
    # The operator's act is shown, and not who the operator is.
    topped = next(one for one in found["acts_of_others"] if one["action"] == "credits.top_up")
    assert (topped["action"], "actor" in topped, "address" in topped) == ("credits.top_up", False, False)
    expected = SOURCES.keys() - {
        "role_requests", "adjustments", "corrections", "refunds", "refund_lines", "products", "sales",
    }  # fmt: skip
    assert found.keys() == expected
    # Each copy of the name and the address is in the export, but that of a token.
    assert set(await copies(api)) == {
        "api_keys",
        "idempotency_keys",
        "one_time_tokens",
        "orders",
        "unverified_emails",
        "users",
    }
    assert not [line for line in lines(reply.text) if other.email in json.dumps(line)]
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.exported'"
    assert await api.scalar(recorded) == f"user:{user.id} user/{user.id}"


async def test_a_seller_exports_products_and_sales(api: Api) -> None:
    buyer, seller, product = await api.shop()
    placed = await api.place(buyer, (product, 1))
    found = lines((await api.get(f"{MINE}.ndjson", by=seller)).text)
    assert [one["id"] for one in found if one["part"] == "products"] == [product.id]
    assert [one["order_id"] for one in found if one["part"] == "sales"] == [placed["id"]]


async def test_only_the_user_and_admins_export_and_that_is_recorded(api: Api) -> None:
    user = await canary(api)
    path = f"/v1/users/{user.id}/personal-data.ndjson"
    for role in set(Role) - {Role.admin}:
        caller = await make_user(api.database, role=role)
        assert_problem(await api.get(path, by=caller), 403, "forbidden")
    admin = await make_admin(api.database)
    shown = await api.get(path, by=admin)
    assert lines(shown.text)[0]["email"] == EMAIL
    recorded = "SELECT actor || ' ' || object FROM audit_log WHERE action = 'user.exported'"
    assert await api.scalar(recorded) == f"user:{admin.id} user/{user.id}"
    assert_problem(await api.get("/v1/users/999999/personal-data.ndjson", by=admin), 404, "not_found")
    key = with_key(await make_key(api, user, "orders:read"))
    assert_problem(await api.get(f"{MINE}.ndjson", headers=key), 403, "forbidden")


async def test_an_export_of_many_rows_is_whole_and_needs_no_more_memory_than_one_of_few(api: Api) -> None:
    user = await make_user(api.database)
    many = """
        INSERT INTO sessions (id, user_id, expires_at, address, user_agent)
        SELECT gen_random_uuid(), :user_id, now(), '192.0.2.1', repeat('x', 200) FROM generate_series(1, :number)
    """
    peaks = []
    for number in (2_000, 18_000):
        await api.execute(many, user_id=user.id, number=number)
        size, parts = 0, set()
        tracemalloc.start()
        # The transport of tests keeps a whole reply: what is measured is the export itself.
        async with UnitOfWork(api.database.write) as uow:
            async for piece in _export(uow, user):
                size += len(piece)
                parts |= {json.loads(line)["id"] for line in piece.splitlines() if b'"part":"sessions"' in line}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # And the session in which tests send their requests.
    assert len(parts) == 20_001
    # The ids that the test keeps are less than this.
    assert peaks[1] - peaks[0] < size / 2


def _export(uow: UnitOfWork, user: User) -> Any:
    async def run(read: Callable[[UnitOfWork], Awaitable[Any]]) -> Any:
        return await read(uow)

    return service.export(run, user.id, 0)


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
