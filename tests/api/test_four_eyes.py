"""One operator alone issues and takes only so much, never for themselves; a second one approves the rest."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from services.settings import Settings
from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, amounts, assert_problem
from tests.api.later import assert_nothing_differs
from tests.api.test_holds import held, resolve
from tests.api.test_reversals import reverse, sent
from tests.factories import make_operator, make_product, make_user

DAY = 86_400


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The limits that are set unless someone changes them, and those that a test changes."""
    return settings.model_copy(update=getattr(request, "param", {}))


def with_settings(**changed: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings", [changed], indirect=True, ids=[""])


async def top_up(api: Api, by: User, user: User, amount: str, note: str = "paid in cash") -> httpx2.Response:
    return await api.post("/v1/top-ups", by=by, json={"user_id": user.id, "amount": amount, "note": note})


async def adjust(api: Api, by: User, user: User, amount: str) -> httpx2.Response:
    return await api.post("/v1/adjustments", by=by, json={"user_id": user.id, "amount": amount, "reason": "a mistake"})


async def decide(api: Api, by: User, asked: httpx2.Response | Mapping[str, Any], verb: str = "approve") -> Any:
    adjustment = asked if isinstance(asked, Mapping) else asked.json()
    return await api.post(f"/v1/adjustments/{adjustment['id']}/{verb}", by=by)


async def refused_without_effect(api: Api, reply: httpx2.Response, code: str) -> dict[str, Any]:
    assert await api.scalar("SELECT count(*) FROM unapproved_movements") == 0
    return assert_problem(reply, 403, code)


async def test_operators_do_not_issue_credits_to_themselves(api: Api) -> None:
    operator = await make_operator(api.database)
    for reply in (
        await top_up(api, operator, operator, "0.01"),
        await adjust(api, operator, operator, "0.01"),
        # Not even for approval: another one has to request it.
        await top_up(api, operator, operator, "9000"),
        await adjust(api, operator, operator, "9000"),
        await adjust(api, operator, operator, "-0.01"),
    ):
        problem = await refused_without_effect(api, reply, "own_account")
        assert "another operator" in problem["detail"]
    assert await api.credits_of(operator) == amounts("0")
    assert await api.scalar("SELECT count(*) FROM adjustments") == 0


async def test_an_adjustment_in_pieces_is_stopped_where_one_piece_would_be(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    pieces = [(await adjust(api, operator, user, amount)).json()["state"] for amount in ("400", "400", "200.01", "200")]
    assert pieces == ["applied", "applied", "pending", "applied"]
    # What is taken counts as well; it does not make room.
    assert (await adjust(api, operator, user, "-0.01")).json()["state"] == "pending"
    assert (await top_up(api, operator, user, "0.01")).status_code == 202
    assert await api.credits_of(user) == amounts("1000")
    # Another account still has its own limit.
    assert (await adjust(api, operator, await make_user(api.database), "1000")).json()["state"] == "applied"
    await assert_nothing_differs(api.database)


async def test_several_operators_together_have_one_limit_for_each_account(api: Api) -> None:
    operators = [await make_operator(api.database) for _ in range(3)]
    user = await make_user(api.database)
    done = [(await top_up(api, operator, user, "450")).status_code for operator in operators]
    assert done == [201, 201, 202]
    assert await api.credits_of(user) == amounts("900")


async def test_an_operator_has_one_limit_for_all_accounts_together(api: Api) -> None:
    operator = await make_operator(api.database)
    users = [await make_user(api.database) for _ in range(6)]
    done = [(await top_up(api, operator, user, "1000")).status_code for user in users]
    assert done == [201] * 5 + [202]
    assert (await top_up(api, await make_operator(api.database), users[-1], "1000")).status_code == 201


async def test_what_was_done_before_the_window_does_not_count(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    assert (await top_up(api, operator, user, "1000")).status_code == 201
    assert (await top_up(api, operator, user, "1")).status_code == 202
    async with api.database.engine.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        await connection.exec_driver_sql("UPDATE unapproved_movements SET created_at = created_at - interval '25 h'")
    assert (await top_up(api, operator, user, "1000")).status_code == 201


async def test_a_top_up_beyond_the_limit_takes_effect_once_another_operator_approves_it(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database, full_name="Ada")

    reply = await top_up(api, operator, user, "1000.01")

    asked = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/v1/adjustments/{asked['id']}")
    assert (asked["operation"], asked["state"], asked["amount"]) == ("top_up", "pending", "1000.01")
    assert (asked["reason"], asked["requested_by"], asked["reverses"]) == ("paid in cash", operator.id, None)
    assert asked["user"] == {"id": user.id, "full_name": "Ada"}
    assert (await api.get(reply.headers["location"], by=second)).json() == asked
    assert await api.credits_of(user) == amounts("0")
    assert_problem(await decide(api, operator, asked), 403, "own_request")
    approved = await decide(api, second, asked)
    assert (approved.status_code, approved.json()["state"]) == (200, "applied")
    moved = (await api.get(f"/v1/transfers/{approved.json()['transfer_id']}", by=user)).json()
    assert (moved["kind"], moved["amount"], moved["note"]) == ("top_up", "1000.01", "paid in cash")
    assert await api.credits_of(user) == amounts("1000.01")
    # What was approved is not what the operator did alone.
    assert (await top_up(api, operator, user, "1000")).status_code == 201
    await assert_nothing_differs(api.database)


async def test_the_reply_to_a_top_up_within_the_limit_is_what_it_was(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    reply = await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "1000.00"})
    made = reply.json()
    assert reply.status_code == 201
    assert "location" not in reply.headers
    assert reply.text == (
        f'{{"amount":"1000.00","note":"","id":"{made["id"]}","kind":"top_up","state":"posted",'
        f'"created_at":"{made["created_at"]}"}}'
    )


async def test_a_top_up_that_needs_approval_says_what_it_is_for(api: Api) -> None:
    operator, user = await make_operator(api.database), await make_user(api.database)
    for note in ("", "  "):
        reply = await top_up(api, operator, user, "1000.01", note)
        assert_problem(reply, 422, "note_required", pointers=["#/note"])


async def test_the_same_key_gets_the_same_pending_top_up(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    user, key = await make_user(api.database), str(uuid4())
    wanted = {"user_id": user.id, "amount": "2000", "note": "paid in cash"}
    first = await api.post("/v1/top-ups", by=operator, key=key, json=wanted)
    await api.approve(first, second)
    again = await api.post("/v1/top-ups", by=operator, key=key, json=wanted)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    assert await api.credits_of(user) == amounts("2000")
    await assert_nothing_differs(api.database)


async def test_a_reversal_beyond_the_limit_takes_effect_once_another_operator_approves_it(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    sender, recipient = await make_user(api.database, credits="2000"), await make_user(api.database)
    transfer_id = await sent(api, sender, recipient, "1000.01")

    reply = await reverse(api, operator, transfer_id)

    asked = reply.json()
    assert (reply.status_code, reply.headers["location"]) == (202, f"/v1/adjustments/{asked['id']}")
    assert (asked["operation"], asked["reverses"]) == ("reversal", transfer_id)
    assert (asked["amount"], asked["user"]["id"], asked["reason"]) == ("-1000.01", recipient.id, "sent in error")
    assert await api.credits_of(recipient) == amounts("1000.01")
    approved = (await decide(api, second, asked)).json()
    assert approved["state"] == "applied"
    seen = (await api.get(f"/v1/transfers/{transfer_id}", by=sender)).json()
    assert seen["reversed_by"] == approved["transfer_id"]
    assert await api.credits_of(sender) == amounts("2000")
    assert await api.credits_of(recipient) == amounts("0")
    assert_problem(await reverse(api, operator, transfer_id), 409, "transfer_already_reversed")
    await assert_nothing_differs(api.database)


async def test_a_transfer_is_reversed_once_however_many_reversals_wait(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    sender, recipient = await make_user(api.database, credits="2000"), await make_user(api.database, credits="5000")
    transfer_id = await sent(api, sender, recipient, "1500")
    asked = [await reverse(api, operator, transfer_id) for _ in range(2)]
    assert (await decide(api, second, asked[0])).status_code == 200
    assert_problem(await decide(api, second, asked[1]), 409, "transfer_already_reversed")
    assert (await decide(api, second, asked[1], "reject")).status_code == 200
    assert await api.credits_of(sender) == amounts("2000")
    await assert_nothing_differs(api.database)


async def test_reversals_in_pieces_count_for_both_accounts(api: Api) -> None:
    operator = await make_operator(api.database)
    sender, recipient = await make_user(api.database, credits="3000"), await make_user(api.database)
    transfers = [await sent(api, sender, recipient, "400") for _ in range(3)]
    assert [(await reverse(api, operator, one)).status_code for one in transfers] == [201, 201, 202]
    assert (await adjust(api, operator, sender, "300")).json()["state"] == "pending"
    assert (await adjust(api, operator, recipient, "200")).json()["state"] == "applied"


async def test_operators_reverse_no_transfer_of_their_own(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    other = await make_user(api.database, credits="5000")
    got, spent = await sent(api, other, operator, "50"), None
    spent = await sent(api, operator, other, "10")
    for transfer_id in (got, spent):
        await refused_without_effect(api, await reverse(api, operator, transfer_id), "own_account")
    # Nor do they decide on it if another one requests it.
    large = await sent(api, other, operator, "2000")
    asked = await reverse(api, second, large)
    assert asked.status_code == 202
    for verb in ("approve", "reject"):
        await refused_without_effect(api, await decide(api, operator, asked, verb), "own_account")


async def test_the_owner_of_the_account_decides_on_nothing_about_it(api: Api) -> None:
    first, second = await make_operator(api.database), await make_operator(api.database)
    third = await make_operator(api.database)
    asked = await adjust(api, first, second, "1000.01")
    for verb in ("approve", "reject"):
        problem = assert_problem(await decide(api, second, asked, verb), 403, "own_account")
        assert "another operator" in problem["detail"]
    assert (await decide(api, third, asked)).json()["state"] == "applied"


@with_settings(approver_tenure=DAY)
async def test_a_puppet_that_was_just_promoted_approves_nothing(api: Api) -> None:
    operator, puppet = await make_operator(api.database), await make_user(api.database)
    user = await make_user(api.database)
    asked = await adjust(api, operator, user, "1000.01")
    await api.execute("UPDATE users SET role = 'operator' WHERE id = :id", id=puppet.id)
    problem = assert_problem(await decide(api, puppet, asked), 403, "approver_too_new")
    until = await api.scalar("SELECT role_since + interval '1 day' FROM users WHERE id = :id", id=puppet.id)
    assert until.isoformat(timespec="seconds") in problem["detail"]
    assert await api.credits_of(user) == amounts("0")
    await let_a_day_pass(api, puppet)
    assert (await decide(api, puppet, asked)).json()["state"] == "applied"


@with_settings(approver_tenure=DAY)
@pytest.mark.parametrize(
    ("gone", "back"),
    [
        ("role = 'customer'", "role = 'operator'"),
        ("is_active = false", "is_active = true"),
        ("deleted_at = now()", "deleted_at = NULL"),
    ],
)
async def test_an_operator_who_comes_back_has_to_wait_again(api: Api, gone: str, back: str) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    await let_a_day_pass(api, second)
    asked = await adjust(api, operator, await make_user(api.database), "1000.01")
    for change in (gone, back):
        await api.execute(f"UPDATE users SET {change} WHERE id = :id", id=second.id)
    assert_problem(await decide(api, second, asked), 403, "approver_too_new")


@with_settings(approver_tenure=DAY)
async def test_other_changes_of_an_operator_do_not_make_them_wait(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    await let_a_day_pass(api, second)
    asked = await adjust(api, operator, await make_user(api.database), "1000.01")
    await api.execute("UPDATE users SET full_name = 'Olga', role = role, version = version + 1 WHERE true")
    assert (await decide(api, second, asked)).json()["state"] == "applied"


async def let_a_day_pass(api: Api, user: User) -> None:
    await api.execute("UPDATE users SET role_since = role_since - interval '25 h' WHERE id = :id", id=user.id)


async def test_holds_that_an_operator_resolves_for_others_are_within_the_limit(api: Api) -> None:
    operator = await make_operator(api.database)
    payer, payee = await make_user(api.database, credits="5000"), await make_user(api.database)
    first, second, large = [await held(api, payer, payee, amount) for amount in ("600", "400", "2000")]
    assert (await resolve(api, first, "void", operator)).status_code == 200
    assert_problem(await resolve(api, large, "void", operator), 403, "approval_needed")
    assert_problem(await resolve(api, large, "post", operator, amount="400.01"), 403, "approval_needed")
    assert (await resolve(api, large, "post", operator, amount="300")).status_code == 200
    problem = assert_problem(await resolve(api, second, "post", operator), 403, "approval_needed")
    assert "recipient" in problem["detail"]
    # The recipient needs no approval for what is theirs.
    assert (await resolve(api, second, "post", payee)).status_code == 200
    assert await api.credits_of(payee) == amounts("700")
    await assert_nothing_differs(api.database)


async def test_operators_resolve_no_hold_that_they_owe(api: Api) -> None:
    operator, payee = await make_user(api.database, credits="50", role=Role.operator), await make_user(api.database)
    owed = await held(api, operator, payee, "10")
    for verb in ("post", "void"):
        await refused_without_effect(api, await resolve(api, owed, verb, operator), "own_account")
    due = await held(api, payee_of := await make_user(api.database, credits="50"), operator, "10")
    assert (await resolve(api, due, "post", operator)).status_code == 200
    assert await api.credits_of(payee_of) == amounts("40")


async def bought(api: Api, buyer: User, *sellers: User, price: str = "600.00") -> str:
    """A confirmed order of one piece from each seller."""
    products = [await make_product(api.database, seller=seller, price=price) for seller in sellers]
    order = await api.place(buyer, *((product, 1) for product in products))
    assert (await api.process()).processed == 1
    return str(order["id"])


@pytest.mark.parametrize("verb", ["refunds", "cancel"])
async def test_what_an_operator_refunds_for_sellers_is_within_the_limit(api: Api, verb: str) -> None:
    operator, buyer = await make_operator(api.database), await make_user(api.database, credits="5000")
    seller, other = await make_user(api.database), await make_user(api.database)
    small, large = await bought(api, buyer, seller), await bought(api, buyer, seller, other, price="450.00")
    assert (await api.post(f"/v1/orders/{small}/{verb}", by=operator, json={})).is_success
    problem = assert_problem(await api.post(f"/v1/orders/{large}/{verb}", by=operator, json={}), 403, "approval_needed")
    assert "sellers" in problem["detail"]
    assert await api.status_of(large) == "confirmed"
    # A seller gives back what is theirs, and a buyer cancels what is theirs, without approval.
    lines = [{"line": 1, "quantity": 1}]
    assert (await api.post(f"/v1/orders/{large}/refunds", by=seller, json={"lines": lines})).status_code == 201
    assert (await api.post(f"/v1/orders/{large}/cancel", by=buyer, json={})).status_code == 200
    assert await api.credits_of(buyer) == amounts("5000")
    await assert_nothing_differs(api.database)


async def test_operators_refund_no_order_of_their_own_but_cancel_it_as_any_buyer(api: Api) -> None:
    operator = await make_user(api.database, credits="2000", role=Role.operator)
    order = await bought(api, operator, await make_user(api.database))
    await refused_without_effect(
        api, await api.post(f"/v1/orders/{order}/refunds", by=operator, json={}), "own_account"
    )
    assert (await api.post(f"/v1/orders/{order}/cancel", by=operator, json={})).status_code == 200
    assert await api.scalar("SELECT count(*) FROM unapproved_movements") == 0


async def test_operators_who_sell_refund_their_own_lines_without_limit(api: Api) -> None:
    operator, buyer = await make_operator(api.database), await make_user(api.database, credits="9000")
    order = await bought(api, buyer, operator, price="6000.00")
    assert (await api.post(f"/v1/orders/{order}/refunds", by=operator, json={})).status_code == 201
    assert await api.scalar("SELECT count(*) FROM unapproved_movements") == 0


@with_settings(adjustment_approval_above=0)
async def test_a_limit_of_zero_means_that_everything_is_approved(api: Api) -> None:
    operator, second = await make_operator(api.database), await make_operator(api.database)
    user = await make_user(api.database)
    asked = await top_up(api, operator, user, "0.01")
    await api.approve(asked, second)
    assert await api.credits_of(user) == amounts("0.01")
