"""What the API logs says which request, or which requests of a group, it is about."""

import asyncio
import logging
from typing import Any

import pytest

from services.api.groups import _Committer
from tests.api.client import Api, order_of
from tests.api.grouped import Gate
from tests.logs import capture_logs


@pytest.fixture
def _speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs a line inside each group."""
    open_one = _Committer._open

    def speak(committer: _Committer, number: int) -> Any:
        logging.getLogger("services.test").info("inside")
        return open_one(committer, number)

    monkeypatch.setattr(_Committer, "_open", speak)


@pytest.mark.usefixtures("_speaking")
async def test_lines_of_a_group_name_its_requests(api: Api, gate: Gate) -> None:
    buyer, _, product = await api.shop()
    with capture_logs("services") as lines:
        async with asyncio.TaskGroup() as tasks, gate.holding(2):
            for number in range(2):
                tasks.create_task(
                    api.post(
                        "/v1/orders",
                        by=buyer,
                        json=order_of((product, 1)),
                        headers={"X-Request-Id": f"r{number}"},
                    )
                )
        await api.post("/v1/orders", by=buyer, json=order_of((product, 1)), headers={"X-Request-Id": "r2"})
    inside = [line for line in lines if line["event"] == "inside"]
    assert [(line.get("requests"), line.get("request_ids"), line.get("request_id")) for line in inside] == [
        (2, ["r0", "r1"], None),
        (None, None, "r2"),
    ]


async def test_the_line_of_an_order_leads_to_it_and_to_its_buyer(api: Api) -> None:
    buyer, _, product = await api.shop()
    with capture_logs("services") as lines:
        grouped = await api.place(buyer, (product, 1))
        api.app.state.waybill.groups.are_open = False
        alone = await api.place(buyer, (product, 1))
        await api.get(f"/v1/orders/{alone['id']}")
    logged = [line for line in lines if line["event"] == "request"]
    assert [(line["route"], line["status"], line.get("caller"), line.get("location")) for line in logged] == [
        ("/v1/orders", 201, f"user:{buyer.id}", f"/v1/orders/{grouped['id']}"),
        ("/v1/orders", 201, f"user:{buyer.id}", f"/v1/orders/{alone['id']}"),
        ("/v1/orders/{order_id}", 401, None, None),
    ]
    assert all(line["bytes_out"] > 0 for line in logged)
