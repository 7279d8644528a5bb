"""One import, from the file to the summary."""

import time
from pathlib import Path

from services.cli.client import Patience, Service, ServiceError, Target, open_http
from services.cli.progress import Display
from services.cli.retail.orders import OrderDesk
from services.cli.retail.plan import Plan, make_plan
from services.cli.retail.report import Outcome, Summary, summarize
from services.cli.retail.shop import ShopKeeper
from services.cli.retail.source import RetailFile

PATIENCE_SECONDS = 90.0
"""How long the service may be unreachable, or all orders stay unchanged, before the import gives up.

Longer than the window of a rate limit.
"""

_FIRST_CONTACT_SECONDS = 5.0


def read_plan(path: Path) -> Plan:
    """The plan for a file. Raises `FileError`."""
    file = RetailFile(path)
    planner = make_plan(file.lines())
    return planner.finish(file.digest)


async def replay(
    plan: Plan, target: Target, display: Display, *, limit: int | None, clients: int
) -> tuple[Summary, list[str]]:
    """Place the first `limit` invoices of the plan; returns the summary, and remarks for the user.

    Raises `ServiceError` if the service cannot be reached or used.
    """
    started = time.monotonic()
    chosen = plan.invoices[:limit]
    async with open_http(target.url, clients) as http:
        service = Service(http, Patience(_FIRST_CONTACT_SECONDS))
        await _make_contact(service, target)
        service.patience = Patience(PATIENCE_SECONDS)
        shop = await ShopKeeper(service, target, plan, display, clients).open(chosen)
        desk = OrderDesk(service, target.operator, shop, display, clients)

        newest_before = await desk.newest_order_at()
        begun = time.monotonic()
        refusals = await desk.place(chosen)
        placing_seconds = time.monotonic() - begun
        refused = {refusal.invoice for refusal in refusals}
        accepted = [invoice for invoice in chosen if invoice.number not in refused]
        orders = await desk.settle(accepted, Patience(PATIENCE_SECONDS))
        outcome = Outcome(
            plan=plan,
            chosen=chosen,
            orders=orders,
            refusals=refusals,
            newest_before=newest_before,
            books=await desk.books(),
            seller_received=await desk.seller_received(),
            placing_seconds=placing_seconds,
            seconds=time.monotonic() - started,
        )
    remarks = [f"invoice {refusal.invoice} was refused: {refusal.reply}" for refusal in refusals]
    if waiting := sum(not order.is_settled for order in orders.values()):
        remarks.append(
            f"{waiting} orders are still waiting and none changed for {PATIENCE_SECONDS:.0f} s: is a worker running?"
        )
    return summarize(outcome), remarks


async def _make_contact(service: Service, target: Target) -> None:
    me = await service.read(target.operator, "/v1/users/me")
    if me["role"] != "operator":
        raise ServiceError(f"{target.operator.email} is not an operator and cannot issue credits")
