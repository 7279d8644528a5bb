"""What `waybill up` prints once everything is running."""

import secrets
from collections.abc import Iterator

from services.cli.facts import FILE_NAME, Credentials, Facts
from services.local.home import Home

_READ_TOKEN = "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"access_token\"])'"  # noqa: S105 (a command)


def announcement(facts: Facts, home: Home) -> Iterator[str]:
    """The lines. The commands among them can be copied."""
    yield ""
    yield "Waybill is running."
    yield ""
    if facts.console_url is not None and facts.operator is not None:
        yield f"  console                     {facts.console_url}"
        yield f"  sign in to it as            {facts.operator.email}   password {facts.operator.password}"
        yield ""
    yield f"  API and its documentation   {facts.docs_url}"
    for role, staff in (("operator", facts.operator), ("second operator", facts.approver), ("admin", facts.admin)):
        if staff is not None:
            yield f"  {role:<27} {staff.email}   password {staff.password}"
    for user in facts.users:
        yield f"  {user.full_name:<27} {user.email}   password {user.password}"
    if facts.api_key is not None:
        yield f"  API key                     {facts.api_key.key}   scopes {' '.join(facts.api_key.scopes)}"
    yield f"  data                        {home.path}"
    yield f"  logs                        {home.logs}"
    yield f"  all of this as JSON         {home.path / FILE_NAME}"
    yield ""
    if facts.users and facts.product_ids:
        yield from _first_order(facts, facts.users[0], facts.product_ids[0])
    else:
        yield "Create an admin with: waybill users create EMAIL --role admin"
        yield ""
    yield "Press Ctrl-C to stop everything; the data is kept."


def _first_order(facts: Facts, buyer: Credentials, product_id: int) -> Iterator[str]:
    orders = f"{facts.api_url}/v1/orders"
    authorization = '-H "Authorization: Bearer $TOKEN"'
    sign_in = f"curl -s {facts.api_url}/v1/token -d username={buyer.email} -d password={buyer.password}"
    body = f'{{"items":[{{"product_id":{product_id},"quantity":2}}]}}'
    yield "In another terminal, get a token, place an order and list your orders:"
    yield ""
    yield f"  TOKEN=$({sign_in} | {_READ_TOKEN})"
    yield ""
    yield f"  curl -i {orders} {authorization} {_order(body)}"
    yield ""
    yield f'  curl -s "{orders}?limit=1&include=items" {authorization}'
    yield ""
    if facts.api_key is not None:
        yield f"A program of {buyer.full_name} places an order with its API key instead:"
        yield ""
        yield f"  curl -i {orders} -H 'Authorization: Bearer {facts.api_key.key}' {_order(body)}"
        yield ""


def _order(body: str) -> str:
    """The other options of a command that places an order."""
    return f"-H 'Idempotency-Key: try-{secrets.token_hex(6)}' -H 'Content-Type: application/json' -d '{body}'"
