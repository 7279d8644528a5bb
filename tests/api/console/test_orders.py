"""The pages about orders: the search, and what happened to one."""

import re

import pytest

import services.walks
from services.users.rights import Role
from tests.api.client import Api
from tests.api.console.browser import Browser, Page, browser_of
from tests.api.test_order_timeline import fail, returned
from tests.factories import make_order, make_product, make_user

PATH = "/console/orders"


async def found(browser: Browser, **wanted: str) -> Page:
    page = await browser.open(PATH)
    reply = await browser.send(page.form(PATH), wanted)
    assert reply.status_code == 200, reply.text
    return Page(reply.text)


def orders_on(page: Page) -> list[str]:
    return [link.removeprefix(f"{PATH}/") for link in page.links if link.startswith(f"{PATH}/")]


async def test_orders_are_found_by_what_is_sent_in_the_body(api: Api) -> None:
    product = await make_product(api.database)
    ids = {}
    for email, reference in (("bea@example.com", "INV-1"), ("ben@example.com", "INV-1")):
        buyer = await make_user(api.database, email=email)
        order = await make_order(api.database, buyer=buyer, lines=[(product, 1)], reference=reference)
        ids[email] = str(order.id)
    bea, ben = ids.values()
    browser = await browser_of(api)
    assert orders_on(await browser.open(PATH)) == [ben, bea]
    assert orders_on(await found(browser, buyer="BEA@example.com")) == [bea]
    assert orders_on(await found(browser, reference="INV-1", status="pending")) == [ben, bea]
    assert orders_on(await found(browser, id=ben)) == [ben]
    assert orders_on(await found(browser, placed_from="2020-01-01T00:00")) == [ben, bea]
    nothing = await found(browser, status="rejected")
    assert (orders_on(nothing), "No order matches." in nothing.text) == ([], True)
    again = await found(browser, buyer="bea@example.com")
    assert again.form(PATH).fields["buyer"] == "bea@example.com", "what was typed stays in the form"


@pytest.mark.parametrize(("field", "value"), [("id", "abc"), ("status", "lost"), ("placed_from", "yesterday")])
async def test_what_cannot_be_searched_for_is_named_on_the_page(api: Api, field: str, value: str) -> None:
    browser = await browser_of(api)
    reply = await browser.send((await browser.open(PATH)).form(PATH), {field: value})
    assert reply.status_code == 422
    assert re.search(rf"{field}\S*: ", Page(reply.text).text)


async def test_older_orders_follow_with_a_button(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.console.pages.orders.SHOWN", 2)
    buyer = await make_user(api.database)
    product = await make_product(api.database)
    ids = [str((await make_order(api.database, buyer=buyer, lines=[(product, 1)])).id) for _ in range(3)]
    browser = await browser_of(api)
    first = await found(browser, buyer=str(buyer.id))
    assert orders_on(first) == ids[:0:-1]
    reply = await browser.send(first.forms[-1])
    assert orders_on(Page(reply.text)) == ids[:1]
    assert "cursor" not in Page(reply.text).forms[-1].fields


async def test_a_page_without_a_match_offers_to_look_further(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.walks, "EXAMINED", 2)
    monkeypatch.setattr("services.orders.search.service.PAGES", 1)
    buyer = await make_user(api.database)
    product = await make_product(api.database)
    for _ in range(4):
        await make_order(api.database, buyer=buyer, lines=[(product, 1)])
    page = await found(await browser_of(api), status="rejected")
    assert "None of the orders examined so far match." in page.text
    assert page.forms[-1].fields["cursor"]


async def test_an_order_shows_its_timeline(api: Api) -> None:
    order_id, _, _ = await returned(api)
    page = await (await browser_of(api)).open(f"{PATH}/{order_id}")
    for words in ("placed as pending", "pending to confirmed", "hold posted", "4 pieces of product", "scratched"):
        assert words in page.text
    assert page.inline == []


async def test_what_users_write_is_escaped(api: Api) -> None:
    bad = "<script>alert(1)</script>"
    buyer = await make_user(api.database, credits="100", full_name=bad)
    order = await api.place(buyer, (await make_product(api.database), 1), reference=bad)
    assert (await api.post(f"/v1/orders/{order['id']}/cancel", by=buyer, json={"reason": bad})).status_code == 200
    browser = await browser_of(api)
    for path in (PATH, f"{PATH}/{order['id']}"):
        reply = await browser.get(path)
        assert bad not in reply.text
        assert Page(reply.text).text.count(bad) >= 2


async def test_support_sees_no_errors_of_events_and_an_auditor_does(api: Api) -> None:
    buyer, _, product = await api.shop(credits="100")
    order = await api.place(buyer, (product, 1))
    await fail(api, 1)
    support = await (await browser_of(api, Role.support)).open(f"{PATH}/{order['id']}")
    assert "no stock of" not in support.text
    assert "Your role does not show: failure, action." in support.text
    auditor = await (await browser_of(api, Role.auditor)).open(f"{PATH}/{order['id']}")
    assert "no stock of <1>" in auditor.text


async def test_a_search_needs_the_token_of_its_form(api: Api) -> None:
    browser = await browser_of(api)
    form = (await browser.open(PATH)).form(PATH)
    assert (await browser.send(form, {"form_token": "another"})).status_code == 403
    assert (await browser.send(form, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
