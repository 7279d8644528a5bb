"""Who may do what in a real browser, and that a keyboard is enough."""

from playwright.async_api import Browser, expect

from services.console.navigation import PAGES
from services.database import Database
from services.users.rights import Role
from tests.browser.shown import Shown, pages_about
from tests.browser.visitor import Visitor, visiting
from tests.factories import PASSWORD, make_user

READS = {"Search", "Filter", "Show", "Open", "Older orders"}
"""Buttons of forms that change nothing."""


async def test_an_auditor_sees_every_page_and_can_change_nothing(
    browser: Browser, ticking: Database, shown: Shown
) -> None:
    auditor = await make_user(ticking, role=Role.auditor)
    async with visiting(browser, shown.url) as visitor:
        await visitor.sign_in(auditor.email)
        await expect(visitor.page.locator("nav.pages a")).to_have_text([page.name for page in PAGES])
        for name, go in pages_about(shown).items():
            if name == "all of a kind":
                continue
            await go(visitor)
            buttons = await visitor.page.locator("main button, main [role=button]").all_inner_texts()
            assert set(buttons) <= READS, f"{name} offers {set(buttons) - READS}"
        await visitor.open(f"/console/failures/all?act=replay&fingerprint={shown.fingerprint}", 403)
        # Not even with a form that someone has written into the page.
        await visitor.open("/console/failures")
        await visitor.page.evaluate(FORGED, shown.fingerprint)
        await expect(visitor.page.get_by_role("heading", name="Forbidden")).to_be_visible()


FORGED = """
    (fingerprint) => {
        const form = document.createElement("form");
        const token = document.querySelector("[name=form_token]").value;
        Object.assign(form, { method: "post", action: "/console/failures/all" });
        for (const [name, value] of Object.entries({ form_token: token, act: "replay", fingerprint, reason: "x" })) {
            form.append(Object.assign(document.createElement("input"), { name, value }));
        }
        document.body.append(form);
        form.submit();
    }
"""


async def test_a_customer_is_told_that_the_console_is_not_for_them(
    browser: Browser, ticking: Database, url: str
) -> None:
    customer = await make_user(ticking)
    async with visiting(browser, url) as visitor:
        visitor.expected_errors |= {401, 403}
        await visitor.sign_in(customer.email)
        await expect(visitor.page.get_by_role("heading", name="The console is for the staff")).to_be_visible()
        await visitor.open("/console/overview", 401)
        await expect(visitor.page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_keyboard_is_enough_to_sign_in_and_to_reach_the_content(
    browser: Browser, ticking: Database, url: str
) -> None:
    operator = await make_user(ticking, role=Role.operator)
    async with visiting(browser, url) as visitor:
        await visitor.open("/console/orders", 401)
        keyboard = visitor.page.keyboard
        # The first field has the focus already.
        await keyboard.type(operator.email)
        await keyboard.press("Tab")
        await keyboard.type(PASSWORD)
        await keyboard.press("Enter")
        await expect(visitor.page.get_by_role("heading", name="Orders")).to_be_visible()
        # The order of the page: past the navigation, or through it.
        await keyboard.press("Tab")
        skip = visitor.page.get_by_role("link", name="Skip to the content")
        await expect(skip).to_be_focused()
        await expect(skip).to_be_in_viewport()
        names = await tabbed(visitor, 3 + len(PAGES))
        assert names == ["Waybill", *(page.name for page in PAGES), "Theme: system", "Sign out"]
        await visitor.open("/console/orders")
        await keyboard.press("Tab")
        await keyboard.press("Enter")
        assert await tabbed(visitor, 2) == ["Id", "Buyer"]


async def tabbed(visitor: Visitor, times: int) -> list[str]:
    """What has the focus after each press of the tabulator key; each shows that it has."""
    names = []
    for _ in range(times):
        await visitor.page.keyboard.press("Tab")
        name, seen = await visitor.page.evaluate(FOCUSED)
        assert seen, f"it cannot be seen that {name!r} has the focus"
        names.append(name)
    return names


FOCUSED = """
    () => {
        const one = document.activeElement, style = getComputedStyle(one);
        const name = (one.labels?.[0] ?? one).innerText.trim();
        return [name, style.outlineStyle !== "none" || style.boxShadow !== "none"];
    }
"""
