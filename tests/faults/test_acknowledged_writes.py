"""Acknowledged writes exist exactly once, whatever is killed, cut, locked or silenced, and whichever clients leave.

Real processes on this test's own servers. `WAYBILL_TEST_SEED` repeats a run's decisions. Without it each run has a new
seed, which is shown if the test fails. `WAYBILL_TEST_LONG=1` makes the storm three minutes long, with three seeds.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal

from services.api.tokens import Tokens
from services.database import open_database
from tests.factories import make_product, make_user
from tests.faults.storm.chaos import LONG, SHORT, Chaos
from tests.faults.storm.clients import Load
from tests.faults.storm.findings import Findings
from tests.faults.storm.site import Site, open_site
from tests.faults.storm.verdict import judge, measure_capacity, settle
from tests.faults.storm.writes import Shop
from tests.roles import superuser_of

_IS_LONG = bool(os.environ.get("WAYBILL_TEST_LONG"))
_GIVEN = os.environ.get("WAYBILL_TEST_SEED")
_ENTRIES = 3000
"""Entries of the account whose statement clients stop reading halfway: downloads are read in pieces of 1,000."""
# They have no events, so they were before the first month of the log.
_LONG_STATEMENT = """
    WITH made AS (
        INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
        SELECT gen_random_uuid(), payer.id, payee.id, 0.01, 'transfer', 'posted', 0.01, now() - interval '10 years'
        FROM accounts AS payer, accounts AS payee, generate_series(1, %(many)s)
        WHERE payer.user_id = %(payer)s AND payee.user_id = %(payee)s
        RETURNING id, debit_account_id, credit_account_id
    ), numbered AS (SELECT *, row_number() OVER () AS n FROM made), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT account.id, account.version + n, numbered.id, side.amount, account.posted + side.amount * n
        FROM numbered, LATERAL (VALUES (debit_account_id, -0.01), (credit_account_id, 0.01)) AS side(account_id, amount)
        JOIN accounts AS account ON account.id = side.account_id
        RETURNING account_id, amount
    )
    UPDATE accounts SET posted = posted + sums.amount, version = version + sums.number
    FROM (SELECT account_id, sum(amount) AS amount, count(*) AS number FROM entered GROUP BY account_id) AS sums
    WHERE sums.account_id = accounts.id
"""


async def _open_shop(site: Site) -> Shop:
    async with open_database(site.settings, "test") as database:
        buyers = [await make_user(database, credits="100000") for _ in range(16)]
        sellers = [await make_user(database, credits="1000") for _ in range(4)]
        products = [
            await make_product(database, seller=sellers[0], stock=10**6, price="1.25", name=f"Product {number}")
            for number in range(10)
        ]
        collector = await make_user(database, credits="1000")
    values = {"many": _ENTRIES, "payer": sellers[1].id, "payee": collector.id}
    with psycopg.connect(superuser_of(site.settings)) as connection:
        connection.execute(_LONG_STATEMENT, values)
    return Shop(
        buyers=[one.id for one in buyers],
        sellers=[one.id for one in sellers],
        products=[one.id for one in products],
        collector=collector.id,
        entries=_ENTRIES,
    )


def _blow(site: Site, seed: int, findings: Findings) -> None:
    shop = site.call(_open_shop, site)
    load = Load([api.port for api in site.apis], shop, Tokens.from_settings(site.settings), seed, findings)
    assert settle(site), findings.report()
    capacity = {api.name: measure_capacity(site, load, api, f"before-{api.name}") for api in site.apis}
    assert min(capacity.values()) > 0, findings.report()

    chaos = Chaos(site, LONG if _IS_LONG else SHORT, seed)
    chaos.accounts, chaos.products = [shop.buyers[0], shop.sellers[1]], [shop.products[0]]
    clients = site.portal.start_task_soon(load.run)
    try:
        chaos.blow()
    finally:
        load.over = True
        clients.result(60)
    judge(site, load, capacity)
    _check_that_it_blew(chaos, findings)


def _check_that_it_blew(chaos: Chaos, findings: Findings) -> None:
    """A run in which little happened proves little."""
    wanted: dict[str, Any] = {
        **{f"chaos: {kind}": 1 for kind in chaos.kinds},
        "order 201": 20,
        "transfer 201": 10,
        "hold 201": 5,
        "batch 200": 1,
        "left a download": 10,
        "left a write": 1,
        "keys that answered as before": 50,
    }
    for name, least in wanted.items():
        if findings.seen[name] < least:
            findings.add("too little of", f"{name}: {findings.seen[name]}, at least {least}")


@pytest.mark.parametrize("number", range(3 if _IS_LONG and not _GIVEN else 1))
def test_acknowledged_writes_exist_exactly_once_after_a_storm(tmp_path: Path, number: int) -> None:
    seed = int(_GIVEN or secrets.randbelow(10**9))
    findings = Findings()
    try:
        with start_blocking_portal() as portal, open_site(tmp_path, portal, findings) as site:
            _blow(site, seed, findings)
    except BaseException as error:
        error.add_note(f"seed {seed}\n{findings.report()}")
        raise
    assert not findings, f"seed {seed}\n{findings.report()}"
