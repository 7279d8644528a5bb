"""`waybill demo`: its options, and what it prints."""

import asyncio
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from services.cli.client import Patience, Service, ServiceError, Target, open_http
from services.cli.console import CommandError, plain_errors, say
from services.cli.facts import DEFAULT_DATA_DIR, Facts
from services.cli.run import AsJson, show_json
from services.cli.running import find_running
from services.cli.target import (
    ApproverEmail,
    ApproverPassword,
    DataDir,
    OperatorEmail,
    OperatorPassword,
    Url,
    find_target,
    login_of,
)
from services.local.demo import failures
from services.local.demo.shop import ShopKeeper
from services.local.demo.traffic import CLIENTS, Done, Traffic

_PATIENCE_SECONDS = 90.0
_SECONDS_BETWEEN_LINES = 10.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h)?")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%?")


def seconds_of(duration: str) -> float:
    """The seconds of a duration such as `90`, `90s`, `10m` or `2h`."""
    found = _DURATION.fullmatch(duration.strip())
    if found is None or (seconds := float(found[1]) * _UNITS[found[2] or "s"]) <= 0:
        raise typer.BadParameter(f"{duration!r} is not a duration, such as 90s, 10m or 2h")
    return seconds


def share_of(percentage: str) -> float:
    """The share of a percentage such as `2%`."""
    found = _SHARE.fullmatch(percentage.strip())
    if found is None or (share := float(found[1]) / 100) > 1:
        raise typer.BadParameter(f"{percentage!r} is not a percentage, such as 2%")
    return share


def demo(
    rate: Annotated[float, typer.Option(min=0.1, max=500, help="Actions a second, on average.")] = 5.0,
    lasting: Annotated[
        float | None, typer.Option("--for", parser=seconds_of, metavar="DURATION", help="Such as 90s, 10m or 2h.")
    ] = None,
    fail: Annotated[
        float,
        typer.Option(
            parser=share_of, metavar="PERCENTAGE", help="Make this share of the orders fail; in development only."
        ),
    ] = "0%",  # type: ignore[assignment] # typer parses it
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove the cause of the failures of --fail, and do nothing else.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    url: Url = None,
    operator_email: OperatorEmail = None,
    operator_password: OperatorPassword = None,
    approver_email: ApproverEmail = None,
    approver_password: ApproverPassword = None,
    as_json: AsJson = False,
) -> None:
    """Send steady, realistic traffic to a service through its API, until Ctrl-C or for a time, and print what was done.

    Buyers with credits order products, some of which they cannot afford or are sold out; they cancel, send goods back
    and give each other credits; sellers ship. With --fail, a trigger in the database of the `waybill up` refuses to
    confirm some orders: their events are retried and become dead letters after about three minutes. Remove the cause
    with --repair, then replay them.
    """
    with plain_errors():
        try:
            if repair:
                failures.remove(_own_facts(data_dir, url))
                say("The cause is removed. Replay the orders that failed: `waybill outbox replay --type order.placed`")
                return
            approver = login_of("approver", approver_email, approver_password)
            target = find_target(data_dir, url, operator_email, operator_password, approver)
            if fail:
                failures.plant(_own_facts(data_dir, url))
            done = asyncio.run(_run(target, rate, lasting, fail))
        except ServiceError as error:
            raise CommandError(str(error)) from error
        if as_json:
            show_json(done.as_json())
        else:
            _show(done, failing=fail > 0)


def _own_facts(data_dir: Path, url: str | None) -> Facts:
    """Of the `waybill up` whose database may be changed. Raises `CommandError` if there is none."""
    running = find_running(data_dir)
    if url is not None or running is None:
        raise CommandError(
            "--fail and --repair change the database of a `waybill up` on this machine: start one, and leave out --url"
        )
    return running.facts


async def _run(target: Target, rate: float, seconds: float | None, fail: float) -> Done:
    stop = asyncio.Event()
    _on_signals(stop.set)
    async with open_http(target.url, CLIENTS) as http:
        service = Service(http, Patience(_PATIENCE_SECONDS))
        me = await service.read(target.operator, "/v1/users/me")
        if me["role"] != "operator":
            raise ServiceError(f"{target.operator.email} is not an operator and cannot issue credits")
        keeper = ShopKeeper(service, target)
        typer.echo("Preparing sellers, products and buyers ...", err=True)
        shop = await keeper.open()
        traffic = Traffic(service, keeper, shop, rate=rate, fails=fail)
        typer.echo(f"Sending about {rate:g} requests a second to {target.url}; Ctrl-C ends it.", err=True)
        telling = asyncio.create_task(_tell(traffic))
        try:
            await traffic.run(stop, seconds)
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
    return traffic.done


def _on_signals(stop: Callable[[], None]) -> None:
    """The first Ctrl-C or SIGTERM ends it cleanly; a second one at once."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        typer.echo("Ending ...", err=True)

    # Only the main thread may.
    with suppress(RuntimeError, ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, first)


async def _tell(traffic: Traffic) -> None:
    """A line on standard error from time to time."""
    said, at = 0, time.monotonic()
    while True:
        await asyncio.sleep(_SECONDS_BETWEEN_LINES)
        done, now = traffic.done, time.monotonic()
        rate = (done.total - said) / (now - at)
        said, at = done.total, now
        typer.echo(f"{done.total:,} requests ({rate:.1f}/s), {done.refused.total():,} of them refused", err=True)


def _show(done: Done, *, failing: bool) -> None:
    say(f"Sent {done.total:,} requests in {done.seconds:.0f} s:")
    for name, number in done.requests.most_common():
        say(f"  {number:>7,}  {name}")
    if done.refused:
        say(f"Refused, as they should be: {done.refused.total():,}")
        for code, number in done.refused.most_common():
            say(f"  {number:>7,}  {code}")
    if done.limited:
        say(f"{done.limited:,} requests had to wait because of limits (429).")
    if done.given_up:
        say(f"{done.given_up:,} actions had not been answered in the end.")
    if failing:
        say("The orders that fail become dead letters after about three minutes: `waybill outbox dead-letters groups`.")
        say("Their cause stays: `waybill demo --repair` removes it, then `waybill outbox replay` replays them.")
