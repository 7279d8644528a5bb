"""Scheduled sending of mails."""

import logging
from time import monotonic
from typing import Any

from services.mail import MailNotSent, sender_of
from services.unit_of_work import background
from services.users.resets import service as resets
from worker.context import WorkerContext

logger = logging.getLogger(__name__)

LONGEST = 50.0
"""Seconds after which a run starts no other mail; the next run continues."""


async def send_mails(ctx: dict[str, Any]) -> None:
    """Send the mails that are due, one after another, each outside of a transaction.

    One that is not accepted is retried for a day, first after a minute. One whose worker died after sending it is sent
    again.
    """
    worker: WorkerContext = ctx["worker"]
    sender = sender_of(worker.settings)
    assert sender is not None, "it is scheduled only if there is one"
    async with background(worker.open_unit_of_work) as uow:
        dropped = await uow.mails.drop_stale()
    if dropped:
        logger.error("mails could not be sent for a day and were dropped", extra={"mails": dropped})
    until = monotonic() + LONGEST
    while monotonic() < until:
        async with background(worker.open_unit_of_work) as uow:
            claimed = await resets.next_mail(uow, worker.settings)
        if claimed is None:
            return
        try:
            await sender.send(resets.message_of(worker.settings, claimed))
        except MailNotSent as error:
            logger.warning("mail not sent; it will be retried", extra={"mail": claimed.mail_id, "error": str(error)})
            async with background(worker.open_unit_of_work) as uow:
                await uow.mails.failed(claimed.mail_id, str(error))
            continue
        async with background(worker.open_unit_of_work) as uow:
            await uow.mails.sent(claimed.mail_id)
