"""Every page of the console in a real browser: nothing to complain about, in both themes and on a small screen."""

from hashlib import sha256
from typing import get_args

from playwright.async_api import Browser

from tests.browser.shown import Shown, pages_about
from tests.browser.visitor import AXE, DESKTOP, PHONE, Theme, Visitor, visiting


async def check_in_all_looks(visitor: Visitor, name: str) -> None:
    for theme in get_args(Theme):
        await visitor.as_seen(theme)
        await visitor.check(f"{name}, {theme}")
    await visitor.as_seen("light", PHONE)
    await visitor.check(f"{name}, on a phone")
    await visitor.as_seen("light", DESKTOP)


async def test_browser_and_axe_have_nothing_to_complain_about_on_any_page(browser: Browser, shown: Shown) -> None:
    async with visiting(browser, shown.url) as visitor:
        await visitor.open("/console/sign-in")
        await check_in_all_looks(visitor, "sign in")
        await visitor.sign_in(shown.operator.email)
        for name, go in pages_about(shown).items():
            await go(visitor)
            await check_in_all_looks(visitor, name)


def test_axe_is_what_its_package_contains() -> None:
    lines = (AXE.parent / "SOURCE.txt").read_text().splitlines()[2:]
    listed = {name: digest for digest, name in map(str.split, lines)}
    files = {file.name: sha256(file.read_bytes()).hexdigest() for file in AXE.parent.iterdir()}
    files.pop("SOURCE.txt")
    assert files == listed
