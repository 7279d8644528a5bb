"""`waybill import-retail` against a real API and workers: messy files, second runs, processes that are killed."""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import psycopg
import pytest

from services.cli.client import Login, Target
from services.cli.progress import Lines
from services.cli.retail import run
from services.cli.retail.source import COLUMNS
from services.database import Database
from services.settings import Settings
from services.users.passwords import Passwords
from services.users.rights import Role
from tests.factories import make_user
from tests.roles import superuser_of

OPERATOR, PASSWORD = "operator@waybill.example", "operator-password"
APPROVER = "approver@waybill.example"
Row: TypeAlias = tuple[str, str, str, str, str, str]
"""Invoice, code, description, quantity, price, customer."""

MESSY: Sequence[Row] = (
    ("536365", "85123A", "WHITE HANGING HEART", "6", "2.55", "17850.0"),
    ("536365", "85123A", "WHITE HANGING HEART", "2", "2.55", "17850.0"),
    ("536365", "71053", "", "6", "3.39", "17850.0"),
    ("536366", "85123A", "WHITE HANGING HEART ", "32", "2.95", ""),
    ("536366", "POST", "POSTAGE", "1", "18.00", ""),
    ("536366", "22139", "", "56", "0.00", ""),
    ("536367", "85123A", "WHITE HANGING HEART", "1", "2.55", ""),
    ("536367", "BANK CHARGES", "Bank Charges", "1", "15", ""),
    ("536368", "22423", "CAKESTAND £3", "1", "0.001", "12345"),
    ("536369", "22423", "damaged", "-10", "0.0", ""),
    ("C536370", "85123A", "WHITE HANGING HEART", "-6", "2.55", "17850.0"),
    ("A536371", "B", "Adjust bad debt", "1", "11062.06", ""),
    ("536372", "22423", "CAKESTAND £3", "three", "12.75", "12345"),
    ("536372", "22423", "CAKESTAND £3", "3", "12.75", "12345"),
)
MESSY_TOTALS = {"536365": "40.74", "536366": "112.40", "536367": "17.55", "536372": "38.25"}
MESSY_CREDITS = str(sum(map(Decimal, MESSY_TOTALS.values())))
MESSY_PIECES = 6 + 2 + 6 + 32 + 1 + 1 + 1 + 3


def write(path: Path, rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for invoice, code, description, quantity, price, customer in rows:
        writer.writerow(
            (invoice, code, description, quantity, "2010-12-01 08:26:00", price, customer, "United Kingdom")
        )
    path.write_bytes(text.getvalue().encode("cp1252"))
    return path


def free_port() -> int:
    """A port that the system picks, so that tests running beside this one get others."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.02)


@dataclass
class House:
    """An API process on a port of its own, and workers, on this test's database."""

    settings: Settings
    folder: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "WAYBILL_ENVIRONMENT": "development",
            "WAYBILL_DATABASE_URL": self.settings.database_url,
            "WAYBILL_REDIS_URL": self.settings.redis_url,
            "WAYBILL_ARGON2_MEMORY_KIB": "8",
            "WAYBILL_ARGON2_TIME_COST": "1",
            "WAYBILL_OPERATOR_EMAIL": OPERATOR,
            "WAYBILL_OPERATOR_PASSWORD": PASSWORD,
        }
        return {**os.environ, **own}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            command = [sys.executable, "-P", "-m", "services.cli", *arguments]
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def start_api(self) -> subprocess.Popen[bytes]:
        process = self.start("api", "--port", str(self.port))
        wait_for(self._answers, "the API to be ready")
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(15)

    def begin_replay(self, file: Path, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-P",
            "-m",
            "services.cli",
            "replay",
            str(file),
            "--url",
            self.url,
            "--json",
            *options,
        ]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def replay(self, file: Path, *options: str) -> dict[str, Any]:
        """The summary of a replay in which all checks are true."""
        return finish(self.begin_replay(file, *options))

    def count(self, query: str) -> Any:
        """The one value of a query."""
        with psycopg.connect(superuser_of(self.settings), autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def execute(self, statement: str) -> None:
        with psycopg.connect(superuser_of(self.settings), autocommit=True) as connection:
            connection.execute(statement.encode())

    def issued(self) -> Decimal:
        issued = self.count("SELECT sum(amount) FROM transfers WHERE kind = 'top_up'")
        assert isinstance(issued, Decimal)
        return issued

    def _answers(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/readyz", trust_env=False).is_success
        return False


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, f"{err}\n{out}"
    summary: dict[str, Any] = json.loads(out)
    assert summary["ok"]
    assert all(summary["checks"].values())
    return summary


def final_figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be the same, however often and with whatever interruptions a file is replayed."""
    changing = {"orders_placed_now", "orders_placed_before", "orders_per_second"}
    return {name: value for name, value in summary.items() if name not in changing and "seconds" not in name}


@pytest.fixture
async def house(settings: Settings, database: Database, tmp_path: Path) -> AsyncIterator[House]:
    hashed = await Passwords(settings).hash(PASSWORD)
    for email in (OPERATOR, APPROVER):
        await make_user(database, email=email, role=Role.operator, hashed_password=hashed)
    built = House(settings, tmp_path)
    try:
        built.start_api()
        yield built
    finally:
        built.stop()


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    return write(tmp_path / "messy.csv", MESSY)


def test_every_line_of_a_messy_file_is_sold_or_counted(house: House, messy: Path) -> None:
    house.start_worker()
    summary = house.replay(messy)
    assert summary["lines_read"] == 14
    assert summary["lines_in_orders"] == 8
    assert summary["lines_skipped"] == {
        "adjustment": 1,
        "cancelled_invoice": 1,
        "malformed": 1,
        "price_not_in_cents": 1,
        "price_zero": 1,
        "quantity_not_positive": 1,
    }
    assert summary["invoices_read"] == 8
    assert summary["invoices_skipped"] == {"no_sellable_line": 2, "adjustment": 1, "cancelled": 1}
    assert summary["orders_by_status"] == {"confirmed": 4}
    assert summary["credits_moved"] == summary["credits_of_invoices"] == MESSY_CREDITS


def test_orders_have_the_lines_prices_and_buyers_of_the_file(house: House, messy: Path) -> None:
    house.start_worker()
    house.replay(messy)
    shown = house.count("""
        SELECT json_agg(json_build_array(reference, sku, quantity, full_name) ORDER BY reference, line)::text
        FROM orders JOIN order_items ON order_id = orders.id JOIN products ON products.id = product_id
        JOIN users ON users.id = buyer_id
    """)
    assert json.loads(shown) == [
        ["536365", "85123A@2.55", 6, "Customer 17850"],
        ["536365", "85123A@2.55", 2, "Customer 17850"],
        ["536365", "71053@3.39", 6, "Customer 17850"],
        ["536366", "85123A@2.95", 32, "Guests"],
        ["536366", "POST@18.00", 1, "Guests"],
        ["536367", "85123A@2.55", 1, "Guests"],
        ["536367", "BANK CHARGES@15.00", 1, "Guests"],
        ["536372", "22423@12.75", 3, "Customer 12345"],
    ]
    assert house.count("SELECT string_agg(DISTINCT name, '|' ORDER BY name) FROM products") == (
        "71053|Bank Charges|CAKESTAND £3|POSTAGE|WHITE HANGING HEART"
    )
    assert house.count("SELECT count(DISTINCT category_id) FROM products") == 2


def test_what_one_operator_may_not_issue_alone_is_approved_by_a_second_one(house: House, tmp_path: Path) -> None:
    row = ("536365", "85123A", "WHITE HANGING HEART", "300", "5.00", "17850.0")
    file = write(tmp_path / "large.csv", [row])
    house.start_worker()
    process = house.begin_replay(file)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 3
    assert "--approver-email" in err
    approver = ("--approver-email", APPROVER, "--approver-password", PASSWORD)
    for _ in range(2):
        assert house.replay(file, *approver)["credits_moved"] == "1500.00"
    assert house.issued() == Decimal("1500.00")
    house.execute("DELETE FROM idempotency_keys")
    assert house.replay(file, *approver)["orders_placed_now"] == 0
    assert house.issued() == Decimal("1500.00")


def test_a_second_run_places_issues_and_stocks_nothing(house: House, messy: Path) -> None:
    house.start_worker()
    first, second = house.replay(messy), house.replay(messy)
    assert (first["orders_placed_now"], first["orders_placed_before"]) == (4, 0)
    assert (second["orders_placed_now"], second["orders_placed_before"]) == (0, 4)
    assert final_figures(second) == final_figures(first)
    assert house.count("SELECT count(*) FROM orders") == 4
    assert house.issued() == Decimal(MESSY_CREDITS)
    assert house.count("SELECT sum(on_hand) FROM inventory") == MESSY_PIECES


def test_nothing_happens_twice_even_after_the_keys_are_forgotten(house: House, messy: Path) -> None:
    house.start_worker()
    first = house.replay(messy)
    house.execute("DELETE FROM idempotency_keys")
    second = house.replay(messy)
    assert second["orders_placed_now"] == 0
    assert final_figures(second) == final_figures(first)
    assert house.issued() == Decimal(MESSY_CREDITS)
    assert house.count("SELECT sum(on_hand) FROM inventory") == MESSY_PIECES


def test_a_limited_run_followed_by_a_full_one_gives_the_same_result(house: House, messy: Path) -> None:
    house.start_worker()
    limited = house.replay(messy, "--limit", "2")
    assert (limited["orders_placed_now"], limited["invoices_skipped"]["beyond_limit"]) == (2, 2)
    assert limited["credits_moved"] == str(Decimal(MESSY_TOTALS["536365"]) + Decimal(MESSY_TOTALS["536366"]))
    whole = house.replay(messy)
    assert (whole["orders_placed_now"], whole["orders_placed_before"]) == (2, 2)
    assert whole["credits_moved"] == MESSY_CREDITS
    assert house.issued() == Decimal(MESSY_CREDITS)
    assert house.count("SELECT sum(on_hand) FROM inventory") == MESSY_PIECES


def test_the_same_invoice_numbers_in_another_file_are_different_orders(house: House, messy: Path) -> None:
    house.start_worker()
    house.replay(messy)
    other = write(messy.with_name("other.csv"), MESSY[:1])
    summary = house.replay(other)
    assert (summary["orders_placed_now"], summary["credits_moved"]) == (1, "15.30")


def test_two_runs_at_once_place_every_invoice_once(house: House, messy: Path) -> None:
    house.start_worker()
    both = [house.begin_replay(messy) for _ in range(2)]
    summaries = [finish(process) for process in both]
    assert final_figures(summaries[0]) == final_figures(summaries[1])
    assert house.count("SELECT count(*) FROM orders") == 4
    assert house.issued() == Decimal(MESSY_CREDITS)


def test_killing_the_api_and_the_worker_half_way_changes_no_figure(house: House, tmp_path: Path) -> None:
    rows = [
        (str(540000 + number), f"2{line:04d}", "LAMP", "1", f"{1 + number % 3}.25", str(17000 + number % 20))
        for number in range(400)
        for line in range(3)
    ]
    file = write(tmp_path / "many.csv", rows)
    api, worker = house.processes[0], house.start_worker()
    replay = house.begin_replay(file, "--concurrency", "8")
    try:
        for orders in (50, 200):
            wait_for(lambda wanted=orders: house.count("SELECT count(*) FROM orders") >= wanted, "orders", 60)  # type: ignore[misc]
            house.kill(worker)
            house.kill(api)
            placed = house.count("SELECT count(*) FROM orders")
            assert placed < 400, "nothing was left to be interrupted"
            time.sleep(0.3)
            api, worker = house.start_api(), house.start_worker()
        summary = finish(replay)
    finally:
        replay.kill()
        replay.communicate()
    assert summary["orders_placed_now"] == 400
    assert summary["orders_by_status"] == {"confirmed": 400}
    assert house.count("SELECT count(*) FROM orders") == 400
    assert house.replay(file)["orders_placed_now"] == 0


async def test_without_a_worker_the_check_on_final_states_is_false(
    house: House, messy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PATIENCE_SECONDS", 1.0)
    target = Target(house.url, Login(OPERATOR, PASSWORD))
    plan = run.read_plan(messy)
    summary, remarks = await run.replay(plan, target, Lines(lambda _: None), limit=None, clients=4)
    assert not summary.all_true
    assert not summary.checks["every_order_final"]
    assert summary.orders_by_status == {"pending": 4}
    assert ["is a worker running?" in remark for remark in remarks] == [True]


def test_a_rejected_order_turns_a_check_false_and_the_exit_code_to_1(house: House, messy: Path) -> None:
    house.start_worker()
    house.replay(messy, "--limit", "2")
    house.execute("UPDATE inventory SET on_hand = reserved")
    process = house.begin_replay(messy)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    summary = json.loads(out)
    assert not summary["ok"]
    assert not summary["checks"]["credits_moved_equal_totals_of_accepted_invoices"]
    assert summary["orders_by_status"]["rejected"] >= 1


def test_a_customer_is_not_an_operator(house: House, messy: Path) -> None:
    customer = {"email": "customer@waybill.example", "password": "customer-password"}
    httpx2.post(f"{house.url}/v1/users", json={**customer, "full_name": "C"}, trust_env=False).raise_for_status()
    options = ("--operator-email", customer["email"], "--operator-password", customer["password"])
    process = house.begin_replay(messy, *options)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert "is not an operator" in err


def test_if_no_service_answers_it_says_so_quickly(house: House, messy: Path) -> None:
    house.kill(house.processes[0])
    begun = time.monotonic()
    process = house.begin_replay(messy)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "")
    assert house.url in err
    assert "Traceback" not in err
    assert time.monotonic() - begun < 20
