"""Replies are protected by their headers, and the page that describes the API needs no other host."""

import asyncio
import hashlib
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest

import services.api.pages
from services.app import create_app
from services.settings import Settings
from tests.api.client import Api
from tests.factories import make_user

ASSETS = Path(services.api.pages.__file__).parent / "assets"
NOTHING = "default-src 'none'; frame-ancestors 'none'"


def check_protected(reply: httpx2.Response) -> None:
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["content-security-policy"] == NOTHING
    assert len(reply.headers.get_list("cache-control")) == 1


async def test_no_reply_is_kept_by_a_cache_or_taken_for_something_else(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    check_protected(await api.get("/v1/users/me", by=user))
    check_protected(await api.sign_in(user.email))
    check_protected(await api.get("/v1/users/me"))
    check_protected(await api.get("/nowhere"))
    check_protected(await api.get("/healthz"))

    def fail(*_: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr("services.users.service.get", fail)
    failed = await api.get("/v1/users/me", by=user)
    assert failed.status_code == 500
    check_protected(failed)
    assert "strict-transport-security" not in failed.headers


async def test_browsers_can_be_told_to_use_https_only(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"http_hsts": 31_536_000}))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client:
        reply = await client.get("/healthz")
    assert reply.headers["strict-transport-security"] == "max-age=31536000"
    check_protected(reply)


class Addresses(HTMLParser):
    """The addresses of everything that a page loads, and whether it contains code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.has_inline_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [value for name in ("src", "href") if (value := given.get(name))]
        self.has_inline_code |= tag == "script" and "src" not in given
        self.has_inline_code |= any(name.startswith("on") for name in given)


async def test_the_page_of_the_api_loads_everything_from_this_host(api: Api) -> None:
    page = await api.get("/docs")
    assert page.status_code == 200
    addresses = Addresses()
    addresses.feed(page.text)
    assert len(addresses.found) == 4
    assert not addresses.has_inline_code
    for address in addresses.found:
        assert re.fullmatch(r"assets/[\w.-]+", address), "a path below this page's"
        loaded = await api.get(f"/{address}")
        assert loaded.status_code == 200, address
        assert loaded.headers["x-content-type-options"] == "nosniff"
    assert (await api.get("/assets/docs.js")).headers["content-type"].startswith("text/javascript")
    policy = page.headers["content-security-policy"]
    sources = {source for directive in policy.split("; ") for source in directive.split(" ")[1:]}
    assert sources <= {"'none'", "'self'", "'unsafe-inline'", "data:"}, "no other host"
    assert "script-src 'self';" in policy, "and no code in the page itself"
    assert 'url: "openapi.json"' in (ASSETS / "docs.js").read_text()
    assert "validatorUrl: null" in (ASSETS / "docs.js").read_text(), "it would send the description elsewhere"


async def test_the_other_address_of_the_page_leads_to_it(api: Api) -> None:
    moved = await api.get("/redoc")
    assert (moved.status_code, moved.headers["location"]) == (308, "docs")


async def test_only_the_pages_files_are_served(api: Api) -> None:
    for name in ("SOURCE.txt", "..%2Fpages.py", "pages.py", ""):
        assert (await api.get(f"/assets/{name}")).status_code == 404


async def test_the_description_is_rendered_once_and_not_on_the_event_loop(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, threads = api.app.openapi, []

    def describe() -> dict[str, Any]:
        threads.append(threading.current_thread())
        return described()

    monkeypatch.setattr(api.app, "openapi", describe)
    replies = await asyncio.gather(*(api.get("/openapi.json") for _ in range(8)))
    assert {reply.status_code for reply in replies} == {200}
    assert replies[0].headers["content-type"] == "application/json"
    assert replies[0].json() == described()
    assert len(threads) == 1, "no reply costs more, and anyone may ask for it without a limit"
    assert threads[0] is not threading.main_thread()


async def test_the_description_names_the_path_at_which_the_api_is_reached(api: Api) -> None:
    transport = httpx2.ASGITransport(api.app, root_path="/shop")
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client:
        assert (await client.get("/shop/openapi.json")).json()["servers"] == [{"url": "/shop"}]
    assert "servers" not in (await api.get("/openapi.json")).json()


async def test_the_description_can_be_turned_off(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"http_docs": False}))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client:
        for path in ("/docs", "/redoc", "/openapi.json", "/assets/docs.js"):
            assert (await client.get(path)).status_code == 404


def test_the_files_of_others_are_what_their_package_contains() -> None:
    folder = ASSETS / "swagger-ui"
    lines = (folder / "SOURCE.txt").read_text().splitlines()[2:]
    listed = {name: digest for digest, name in map(str.split, lines)}
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    files.pop("SOURCE.txt")
    assert files == listed
    assert {"LICENSE", "NOTICE"} <= set(files)
