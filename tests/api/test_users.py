"""Users over HTTP."""

import asyncio
from typing import Any

import pytest

from services.mail import sender_of
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, make_operator, make_product, make_user

ADA: dict[str, Any] = {"email": "ada@example.com", "full_name": "Ada", "password": "long enough"}
OWN = {"current_password": "long enough"}


async def test_registration_opens_an_empty_account_and_records_an_event(api: Api) -> None:
    reply = await api.post("/v1/users", key=None, json=ADA)
    assert reply.status_code == 201
    assert reply.json().keys() == {"id", "email", "full_name", "role", "is_active", "version", "created_at"}
    assert await api.scalar("SELECT count(*) FROM accounts WHERE user_id = :id", id=reply.json()["id"]) == 1
    assert await api.scalar("SELECT type FROM events") == "user.registered"
    assert await api.scalar("SELECT request_id FROM events") == reply.headers["x-request-id"]


@pytest.mark.parametrize("email", ["ada@example.com", "ADA@Example.Com"])
async def test_addresses_are_unique_regardless_of_case(api: Api, email: str) -> None:
    await api.post("/v1/users", key=None, json=ADA)
    before = await api.everything()
    reply = await api.post("/v1/users", key=None, json={**ADA, "email": email})
    assert_problem(reply, 409, "already_exists", pointers=["#/email"])
    assert await api.everything() == before


async def test_of_simultaneous_registrations_with_one_address_one_succeeds(api: Api) -> None:
    replies = await asyncio.gather(*[api.post("/v1/users", key=None, json=ADA) for _ in range(10)])
    assert sorted(reply.status_code for reply in replies) == [201] + [409] * 9
    for reply in replies:
        if reply.status_code == 409:
            assert_problem(reply, 409, "already_exists", pointers=["#/email"])
    assert await api.scalar("SELECT count(*) FROM users") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no address"),
        ("email", "a@b"),
        ("email", "x" * 250 + "@example.com"),
        ("email", "a\x00@example.com"),
        ("email", 1),
        ("email", None),
        ("full_name", ""),
        ("full_name", " \t"),
        ("full_name", "x" * 201),
        ("full_name", "a\x00b"),
        ("password", "too short"),
        ("password", "x" * 201),
        ("password", None),
        ("role", "operator"),
        ("is_active", True),
        ("hashed_password", "x"),
        ("id", 1),
    ],
)
async def test_an_invalid_registration_is_refused(api: Api, field: str, value: Any) -> None:
    before = await api.everything()
    reply = await api.post("/v1/users", key=None, json={**ADA, field: value})
    assert_problem(reply, 422, "invalid_input", pointers=[f"#/{field}"])
    assert "too short" not in reply.text, "what was sent as a password is not sent back"
    assert await api.everything() == before


async def test_users_change_their_own_name_and_password(api: Api) -> None:
    user_id = (await api.post("/v1/users", key=None, json=ADA)).json()["id"]
    signed_in = await api.sign_in(ADA["email"], ADA["password"])
    headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}

    reply = await api.patch(
        "/v1/users/me", version=1, headers=headers, json={"full_name": "Ada L.", "password": "another one!", **OWN}
    )

    assert (reply.status_code, reply.json()["full_name"], reply.headers["etag"]) == (200, "Ada L.", '"2"')
    assert reply.json()["id"] == user_id
    old = await api.sign_in(ADA["email"], ADA["password"])
    new = await api.sign_in(ADA["email"], "another one!")
    assert (old.status_code, new.status_code) == (401, 200)


@pytest.mark.parametrize("password", [" with spaces at both ends ", "PÄSSWÖRTER ΑΒΓ 私の秘密", "long" + " enough" * 28])
async def test_a_password_of_any_characters_counts_exactly_as_it_was_sent(api: Api, password: str) -> None:
    assert (await api.post("/v1/users", key=None, json={**ADA, "password": password})).status_code == 201
    for other in (password[:-1], password.strip(" "), password.lower().upper() + "!", password.swapcase()):
        if other != password:
            assert_problem(await api.sign_in(ADA["email"], other), 401, "unauthenticated")
    assert (await api.sign_in(ADA["email"], password)).status_code == 200


async def test_an_operator_cannot_set_the_password_of_a_user(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    for field in ("password", "hashed_password"):
        refused = await api.patch(f"/v1/users/{user.id}", by=operator, version=1, json={field: "chosen by someone"})
        assert_problem(refused, 422, "invalid_input", pointers=[f"#/{field}"])
    assert (await api.sign_in(user.email)).status_code == 200


async def test_users_and_operators_change_an_address(api: Api) -> None:
    operator = await make_operator(api.database)
    taken = (await make_user(api.database, email="bob@example.com")).email
    user_id = (await api.post("/v1/users", key=None, json=ADA)).json()["id"]
    signed_in = await api.sign_in(ADA["email"], ADA["password"])
    headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}

    changed = await api.patch("/v1/users/me", version=1, headers=headers, json={"email": "Ada@New.example.com", **OWN})
    assert (changed.status_code, changed.json()["email"], changed.json()["version"]) == (200, "ada@new.example.com", 2)
    old = await api.sign_in(ADA["email"], ADA["password"])
    new = await api.sign_in("ada@new.example.com", ADA["password"])
    assert (old.status_code, new.status_code) == (401, 200)
    again = await api.patch(f"/v1/users/{user_id}", by=operator, version=2, json={"email": "ada@old.example.com"})
    assert (again.status_code, again.json()["email"]) == (200, "ada@old.example.com")

    before = await api.everything()
    for email in (taken, taken.upper()):
        own = await api.patch("/v1/users/me", version=3, headers=headers, json={"email": email, **OWN})
        assert_problem(own, 409, "already_exists", pointers=["#/email"])
        by_operator = await api.patch(f"/v1/users/{user_id}", by=operator, version=3, json={"email": email})
        assert_problem(by_operator, 409, "already_exists", pointers=["#/email"])
    wrong = await api.patch("/v1/users/me", version=3, headers=headers, json={"email": "no address"})
    assert_problem(wrong, 422, "invalid_input", pointers=["#/email"])
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM events WHERE type = 'user.email_changed'") == 2


async def test_of_simultaneous_changes_to_one_address_one_succeeds(api: Api) -> None:
    users = [await make_user(api.database) for _ in range(6)]
    changes = [
        api.patch("/v1/users/me", by=user, version=1, json={"email": "one@example.com", **CONFIRMED}) for user in users
    ]
    replies = await asyncio.gather(*changes)
    assert sorted(reply.status_code for reply in replies) == [200] + [409] * 5
    for reply in replies:
        if reply.status_code == 409:
            assert_problem(reply, 409, "already_exists", pointers=["#/email"])


async def test_an_edit_needs_the_version_that_was_read(api: Api) -> None:
    user = await make_user(api.database)
    operator = await make_operator(api.database)
    before = await api.everything()
    for path, by in (("/v1/users/me", user), (f"/v1/users/{user.id}", operator)):
        missing = await api.patch(path, by=by, version=None, json={"full_name": "X"})
        assert_problem(missing, 428, "version_required")
        assert_problem(await api.patch(path, by=by, version=2, json={"full_name": "X"}), 412, "stale_version")
        for malformed in ("1", '"0"', '"x"', "*", '"1", "2"', '"-1"', '"99999999999"', 'W/"', ""):
            reply = await api.patch(path, by=by, version=None, headers={"If-Match": malformed}, json={"full_name": "X"})
            assert_problem(reply, 422, "invalid_input", pointers=None)
    assert await api.everything() == before


async def test_of_simultaneous_edits_of_one_version_one_wins(api: Api) -> None:
    user = await make_user(api.database)
    edits = [api.patch("/v1/users/me", by=user, version=1, json={"full_name": f"Name {n}"}) for n in range(8)]
    replies = await asyncio.gather(*edits)
    assert sorted(reply.status_code for reply in replies) == [200] + [412] * 7
    won = next(reply for reply in replies if reply.status_code == 200)
    assert (await api.get("/v1/users/me", by=user)).json()["full_name"] == won.json()["full_name"]


async def test_operators_find_change_delete_and_restore_users(api: Api) -> None:
    operator = await make_operator(api.database)
    user = await make_user(api.database, email="bea@example.com", full_name="Bea")
    path = f"/v1/users/{user.id}"

    found = await api.get("/v1/users?filter=email:like:BEA&sort=-email", by=operator)
    assert [one["id"] for one in found.json()["data"]] == [user.id]
    read = await api.get(path, by=operator)
    assert (read.status_code, read.headers["etag"]) == (200, '"1"')
    changed = await api.patch(path, by=operator, version=1, json={"email": "bea@example.com", "full_name": "Bea B."})
    assert (changed.json()["role"], changed.json()["full_name"]) == ("customer", "Bea B.")

    assert (await api.delete(path, by=operator)).status_code == 204
    assert_problem(await api.get(path, by=operator), 404, "not_found")
    assert_problem(await api.delete(path, by=operator), 404, "not_found")
    assert_problem(await api.patch(path, by=operator, version=2, json={}), 404, "not_found")
    assert (await api.get("/v1/users?filter=email:like:bea", by=operator)).json()["data"] == []
    again = await api.post("/v1/users", key=None, json={**ADA, "email": "bea@example.com"})
    assert_problem(again, 409, "already_exists", pointers=["#/email"])

    restored = await api.post(f"{path}/restore", by=operator)
    assert (restored.status_code, restored.json()["full_name"]) == (200, "Bea B.")
    assert_problem(await api.post(f"{path}/restore", by=operator), 404, "not_found")


async def test_products_of_a_deleted_user_are_off_sale(api: Api) -> None:
    buyer, seller, product = await api.shop()
    await api.delete("/v1/users/me", by=seller, json=CONFIRMED)
    items = {"items": [{"product_id": product.id, "quantity": 1}]}
    refused = await api.post("/v1/orders", by=buyer, json=items)
    assert_problem(refused, 422, "invalid_input", pointers=["#/items/0/product_id"])


async def test_operators_cannot_lock_themselves_out(api: Api) -> None:
    operator = await make_operator(api.database)
    path = f"/v1/users/{operator.id}"
    for changes in ({"is_active": False}, {"role": "customer"}):
        assert_problem(await api.patch(path, by=operator, version=1, json=changes), 422, "invalid_input")
    assert_problem(await api.delete(path, by=operator), 422, "invalid_input")
    assert (await api.get("/v1/users/me", by=operator)).status_code == 200


async def test_unknown_users_are_not_found(api: Api) -> None:
    operator = await make_operator(api.database)
    path = f"/v1/users/{2**62}"
    assert_problem(await api.get(path, by=operator), 404, "not_found")
    assert_problem(await api.patch(path, by=operator, version=1, json={}), 404, "not_found")
    assert_problem(await api.delete(path, by=operator), 404, "not_found")
    assert_problem(await api.post(f"{path}/restore", by=operator), 404, "not_found")


async def test_a_deleted_users_orders_and_credits_stay_on_the_books(api: Api) -> None:
    buyer, seller, _ = await api.shop()
    product = await make_product(api.database, seller=seller)
    placed = await api.place(buyer, (product, 1))
    assert (await api.delete("/v1/users/me", by=buyer, json=CONFIRMED)).status_code == 204
    await api.process()
    assert await api.status_of(placed["id"]) == "confirmed"
    await api.assert_books_balance()


@pytest.mark.parametrize("mail_url", ["console:", None], ids=["mail is on", "mail is off"])
async def test_a_mail_tells_the_former_address_that_someone_else_has_changed_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, mail_url: str | None
) -> None:
    sender = sender_of(api.settings)
    assert sender is not None, "in development it writes mails to the log"
    monkeypatch.setattr("services.users.routes.sender_of", lambda _: sender if mail_url else None)
    user, operator = await make_user(api.database, email="old@example.com"), await make_operator(api.database)
    path = f"/v1/users/{user.id}"

    named = await api.patch(path, by=operator, version=1, json={"full_name": "Another", "email": "old@example.com"})
    changed = await api.patch(path, by=operator, version=2, json={"email": "new@example.com"})

    assert (named.status_code, changed.status_code) == (200, 200)
    mails = await api.scalar("SELECT string_agg(kind || ' ' || email, ', ') FROM mails")
    assert mails == ("email_changed old@example.com" if mail_url else None)
