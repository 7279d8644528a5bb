"""Seals the audit log: gives each committed row its place in a chain of hashes."""

import hashlib

from services.audit.log.schemas import Head
from services.unit_of_work import UnitOfWork

AT_ONCE = 1000
"""Rows that are sealed in one transaction."""


async def seal(uow: UnitOfWork) -> tuple[int, Head]:
    """Seal up to `AT_ONCE` rows, in the order of their ids; returns their number, and the head of the chain.

    Transactions that write acts do not wait for this, nor for each other. A row that is committed after rows with
    higher ids were sealed gets its place after them: the chain has the order of sealing.
    """
    head = await uow.audit_log.lock_head()
    # A separate statement after the lock, so it sees what another process has sealed just before.
    rows = await uow.audit_log.unsealed(AT_ONCE)
    hashes = []
    last = head.hash
    for row in rows:
        last = hashlib.sha256(last + row["content"]).digest()
        hashes.append(last)
    if rows:
        head = Head(head.position + len(rows), last)
        await uow.audit_log.seal([row["id"] for row in rows], hashes, head)
    return len(rows), head
