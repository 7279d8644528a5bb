"""What all pages have in common: headers, files, errors that are pages, and nothing from elsewhere."""

import hashlib
import re
from pathlib import Path

import pytest

import services.console
from services.console import assets
from services.console.navigation import PAGES
from services.console.site import PAGES as ROUTERS
from services.users.rights import SCOPES, Role
from tests.api.client import Api
from tests.api.console.browser import SAME_ORIGIN, Browser, Page, browser_of

FOLDER = Path(services.console.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))


@pytest.mark.parametrize("path", ["/console/sign-in", *(page.path for page in PAGES)])
async def test_a_page_runs_and_loads_only_what_this_package_contains(api: Api, path: str) -> None:
    browser = await browser_of(api)
    reply = await browser.get(path)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    sources = {source for directive in policy.split("; ") for source in directive.split(" ")[1:]}
    assert sources == {"'none'", "'self'", "data:"}, "no other host, and no code in the page"
    page = Page(reply.text)
    assert page.inline == []
    for address in page.loaded:
        if address != "data:,":
            assert re.fullmatch(r"/console/assets/[0-9a-f]{12}/[\w.-]+", address)
            loaded = await browser.get(address)
            assert loaded.status_code == 200, address
            assert loaded.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.stem)
def test_a_template_escapes_everything_and_has_no_code_in_it(template: Path) -> None:
    text = template.read_text()
    assert not re.search(r"\|\s*safe\b|Markup|autoescape", text), "what is not escaped could be code"
    page = Page(re.sub(r"\{[{%#].*?[}%#]\}", "", text, flags=re.DOTALL))
    assert page.inline == []
    posting = len(re.findall(r'<form[^>]*method="post"', text))
    assert text.count('<input type="hidden" name="form_token" value="{{ form_token }}">') == posting


async def test_files_of_another_release_are_not_kept(api: Api) -> None:
    reply = await Browser(api).get("/console/assets/0123456789ab/console.css")
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-store")


async def test_only_the_pages_files_are_served(api: Api) -> None:
    for name in ("SOURCE.txt", "..%2Fassets.py", "assets.py", ".gitattributes", "htmx%2FLICENSE"):
        assert (await Browser(api).get(f"/console/assets/{assets.VERSION}/{name}")).status_code == 404


@pytest.mark.parametrize("name", ["htmx", "pico", "uplot"])
def test_the_files_of_others_are_what_their_packages_contain(name: str) -> None:
    folder = FOLDER / "assets" / name
    lines = (folder / "SOURCE.txt").read_text().splitlines()[2:]
    listed = {name: digest for digest, name in map(str.split, lines)}
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    files.pop("SOURCE.txt")
    assert files == listed
    assert any(name.startswith("LICENSE") for name in files)


async def test_errors_of_the_console_are_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await browser_of(api)
    for reply, status, words in (
        (await browser.get("/console/nowhere"), 404, "Not Found"),
        (await browser.get("/console/overview?colour=red"), 400, "the query parameter 'colour' is unknown"),
        (await browser.client.put("/console/overview", headers=SAME_ORIGIN), 405, "Method Not Allowed"),
    ):
        assert reply.status_code == status
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert reply.headers["cache-control"] == "no-store"
        page = Page(reply.text)
        assert words in page.text
        assert f"Request {reply.headers['x-request-id']}" in page.text

    def fail(*_: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr("services.operations.service.backlog", fail)
    failed = await browser.get("/console/overview")
    assert failed.status_code == 500
    assert "the request failed; nothing took effect" in Page(failed.text).text
    assert failed.headers.get_list("x-request-id") == [failed.headers["x-request-id"]]
    assert "default-src 'none'; script-src 'self'" in failed.headers["content-security-policy"]


async def test_errors_elsewhere_are_still_problems(api: Api) -> None:
    for path in ("/nowhere", "/consoles", "/v1/console"):
        reply = await api.get(path)
        assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("role", [role for role in Role if role.is_staff])
async def test_the_navigation_shows_each_role_the_pages_that_it_may_open(api: Api, role: Role) -> None:
    browser = await browser_of(api, role)
    shown = set(Page((await browser.get("/console")).text).links)
    first = await browser.client.get("/console", follow_redirects=True)
    shown = set(Page(first.text).links)
    for page in PAGES:
        reply = await browser.get(page.path)
        if page.scope in SCOPES[role]:
            assert reply.status_code == 200, f"{page.name} as {role.value}"
            assert page.path in shown
        else:
            assert reply.status_code == 403, f"{page.name} as {role.value}"
            assert page.path not in shown


def test_every_page_of_the_navigation_declares_the_scope_that_it_is_shown_for() -> None:
    declared = {route.path: route.endpoint.needed_scope for router in ROUTERS for route in router.routes}  # type: ignore[attr-defined]
    assert {page.path: declared[page.path] for page in PAGES} == {page.path: page.scope for page in PAGES}
