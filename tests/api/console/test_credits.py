"""The pages about credits: what waits for approval, the last audit, and accounts."""

import json

import pytest

from services.users.models import User
from services.users.rights import Role
from tests.api.client import Api, amounts
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of
from tests.api.test_adjustments import ABOVE, adjust
from tests.api.test_order_timeline import returned
from tests.factories import make_operator, make_user

PATH = "/console/credits"


async def asked(api: Api, user: User, reason: str = "found in the till") -> str:
    """The id of an adjustment that waits, and that another operator asked for."""
    reply = await adjust(api, await make_operator(api.database), user, ABOVE, reason)
    adjustment = reply.json()
    assert (reply.status_code, adjustment["state"]) == (201, "pending"), reply.text
    return str(adjustment["id"])


async def state_of(api: Api, adjustment_id: str) -> str:
    return str(await api.scalar("SELECT state FROM adjustments WHERE id = CAST(:id AS uuid)", id=adjustment_id))


@pytest.mark.parametrize(("verb", "state", "credits_"), [("approve", "applied", ABOVE), ("reject", "rejected", "0.00")])
async def test_a_second_operator_decides_on_what_waits(api: Api, verb: str, state: str, credits_: str) -> None:
    user = await make_user(api.database, full_name="Ada")
    adjustment = await asked(api, user)
    browser = await browser_of(api)
    page = await browser.open(PATH)
    assert "found in the till" in page.text
    reply = await browser.send(page.form(f"{adjustment}/{verb}"))
    assert (reply.status_code, reply.headers["location"]) == (303, PATH)
    assert await state_of(api, adjustment) == state
    assert await api.credits_of(user) == amounts(credits_)
    assert "Nothing waits for approval." in (await browser.open(PATH)).text
    again = await browser.send(page.form(f"{adjustment}/{verb}"))
    assert (again.status_code, f"already {state}" in again.text) == (409, True)


async def test_those_who_asked_cannot_decide_themselves(api: Api) -> None:
    browser, operator = Browser(api), await make_operator(api.database)
    assert (await browser.sign_in(operator)).status_code == 303
    adjustment = (await adjust(api, operator, await make_user(api.database), ABOVE)).json()["id"]
    page = await browser.open(PATH)
    assert "another operator decides" in page.text
    assert [form.action for form in page.forms if adjustment in form.action] == []
    sent = {"form_token": page.form(PATH).fields["form_token"]}
    reply = await browser.client.post(f"{PATH}/adjustments/{adjustment}/approve", data=sent, headers=SAME_ORIGIN)
    assert (reply.status_code, await state_of(api, adjustment)) == (403, "pending")
    assert "another operator must decide on it" in Page(reply.text).text


@pytest.mark.parametrize("role", [Role.auditor, Role.support])
async def test_those_who_only_read_see_and_cannot_decide(api: Api, role: Role) -> None:
    adjustment = await asked(api, await make_user(api.database))
    browser = await browser_of(api, role)
    page = await browser.open(PATH)
    assert ("found in the till" in page.text) == (role is Role.auditor)
    assert ("Last audit" in page.text) == (role is Role.auditor)
    sent = {"form_token": page.form(PATH).fields["form_token"]}
    for verb in ("approve", "reject"):
        assert not any(form.action.endswith(verb) for form in page.forms)
        reply = await browser.client.post(f"{PATH}/adjustments/{adjustment}/{verb}", data=sent, headers=SAME_ORIGIN)
        assert reply.status_code == 403
    assert await state_of(api, adjustment) == "pending"


async def test_a_decision_needs_the_token_of_its_form(api: Api) -> None:
    adjustment = await asked(api, await make_user(api.database))
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form(f"{adjustment}/approve")
    assert (await browser.send(form, {"form_token": ""})).status_code == 403
    assert (await browser.send(form, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert await state_of(api, adjustment) == "pending"


async def test_the_last_audit_shows_its_differences(api: Api) -> None:
    browser = await browser_of(api, Role.auditor)
    assert "No audit has finished yet." in (await browser.open(PATH)).text
    found = "INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample)"
    await api.execute(f"{found} VALUES (now() - interval '1 hour', 1.5, 1000, 0, '[]')")
    assert "Everything balances." in (await browser.open(PATH)).text
    message = "product 7 has <4> pieces on hand, but its movements sum to 3"
    difference = {
        "kind": "stock_moved",
        "subject": {"product_id": 7},
        "expected": "3",
        "found": "4",
        "message": message,
    }
    await api.execute(f"{found} VALUES (now(), 1.5, 1000, 1, CAST(:sample AS jsonb))", sample=json.dumps([difference]))
    reply = await browser.get(PATH)
    assert "<4>" not in reply.text
    assert "1 difference." in Page(reply.text).text
    assert message in Page(reply.text).text


async def test_an_account_is_found_by_the_id_or_the_address_of_its_user(api: Api) -> None:
    user = await make_user(api.database, email="ada@example.com", credits="12")
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form(PATH)
    for typed in (str(user.id), "ADA@example.com"):
        reply = await browser.send(form, {"user": typed})
        assert (reply.status_code, reply.headers["location"]) == (303, f"{PATH}/accounts/{user.id}")
    for typed in ("999999", "9" * 40, "nobody@example.com", "a\x00b", ""):
        reply = await browser.send(form, {"user": typed})
        assert (reply.status_code, "No user has this id or address." in reply.text) == (404, True), typed


async def test_an_account_shows_its_balance_statement_holds_and_transfers(api: Api) -> None:
    order_id, buyer, seller = await returned(api)
    note = "<b>for lunch</b>"
    transfer = {"to_user_id": seller.id, "amount": "1.00", "note": note}
    assert (await api.post("/v1/transfers", by=buyer, json=transfer)).status_code == 201
    browser = await browser_of(api, Role.support)
    reply = await browser.get(f"{PATH}/accounts/{buyer.id}")
    page = Page(reply.text)
    assert note not in reply.text
    assert note in page.text
    assert f"Account of {buyer.full_name}" in page.text
    assert f"/console/orders/{order_id}" in page.links
    assert "Posted 91.50" in page.text
    assert (await browser.get(f"{PATH}/accounts/999999")).status_code == 404


async def test_a_statement_continues_on_another_page(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.console.pages.credits.LINES", 2)
    buyer, seller = await make_user(api.database, credits="100"), await make_user(api.database)
    for amount in ("1.00", "2.00", "3.00"):
        sent = {"to_user_id": seller.id, "amount": amount}
        assert (await api.post("/v1/transfers", by=buyer, json=sent)).status_code == 201
    browser = await browser_of(api)
    first = await browser.open(f"{PATH}/accounts/{seller.id}")
    (older,) = [link for link in first.links if "cursor=" in link]
    second = await browser.open(older)
    assert "6.00" in first.text
    assert "6.00" not in second.text.split("Statement")[1]
    assert "1.00" in second.text.split("Statement")[1]
    assert (await browser.get(f"{PATH}/accounts/{buyer.id}?{older.partition('?')[2]}")).status_code == 400


async def test_what_operators_write_is_escaped(api: Api) -> None:
    bad = "<script>alert(1)</script>"
    await asked(api, await make_user(api.database, full_name=bad), bad)
    reply = await (await browser_of(api)).get(PATH)
    assert bad not in reply.text
    assert Page(reply.text).text.count(bad) == 2
