"""`GET /` says where things are, to people and to programs."""

import base64
import hashlib
import re

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from services.app import create_app
from services.settings import Settings
from tests.api.client import Api
from tests.api.test_headers import Addresses

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
ALL = {
    "docs": "docs",
    "openapi": "openapi.json",
    "console": "console",
    "health": "healthz",
    "readiness": "readyz",
    "metrics": "metrics",
}


async def links_of(app: FastAPI) -> dict[str, str]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api.test") as client:
        links: dict[str, str] = (await client.get("/", headers={"Accept": "application/json"})).json()["links"]
        return links


@pytest.mark.parametrize("accepted", [BROWSER, "*/*", "", "text/html;q=x, text/*", "application/json;q=0.5, text/html"])
async def test_a_browser_gets_a_page_whose_links_work(api: Api, accepted: str) -> None:
    page = await api.get("/", headers={"Accept": accepted})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    addresses = Addresses()
    addresses.feed(page.text)
    assert addresses.found[0] == "data:,"
    assert addresses.found[1:] == [*ALL.values()]
    for address in addresses.found[1:]:
        # The console asks for a sign-in.
        wanted = 401 if address == "console" else 200
        assert (await api.get(f"/{address}")).status_code == wanted, address


async def test_the_page_may_load_and_run_nothing(api: Api) -> None:
    page = await api.get("/", headers={"Accept": BROWSER})
    (style,) = re.findall("<style>(.*?)</style>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    assert "<script" not in page.text


@pytest.mark.parametrize("accepted", ["application/json", "application/*", "text/html;q=0.1, */*;q=0.2"])
async def test_a_program_gets_json_if_it_asks_for_it(api: Api, accepted: str) -> None:
    reply = await api.get("/", headers={"Accept": accepted})
    assert (reply.status_code, reply.json()) == (200, {"links": ALL})
    assert reply.headers["vary"] == "Accept"


async def test_only_what_is_served_and_can_be_opened_is_linked(settings: Settings) -> None:
    changes = {"http_docs": False, "console": False, "metrics_token": SecretStr("a-token")}
    closed = settings.model_copy(update=changes)
    assert await links_of(create_app(closed)) == {"health": "healthz", "readiness": "readyz"}


async def test_other_methods_are_refused_as_everywhere(api: Api) -> None:
    refused = await api.client.post("/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert (await api.client.head("/")).status_code == 200
