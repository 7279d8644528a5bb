"""Adapt a database that came from another cluster: its sequences, transaction ids and consumers of the log."""

from services.acting import Action
from services.cli.console import plain_errors, say
from services.cli.run import Actor, Reason, Yes, confirm, counted, in_one, who
from services.outbox.origin import service
from services.outbox.origin.schemas import Rebased
from services.unit_of_work import UnitOfWork


def rebase(yes: Yes = False, actor: Actor = None, reason: Reason = "") -> None:
    """Adapt the database to this cluster, after a restore from a dump, logical replication or `pg_upgrade`.

    The event log stores transaction ids, which mean nothing in another cluster. They are replaced, and each consumer of
    the log continues with exactly the events that it had not read. Sequences continue after the values in their tables.
    Stop the API and the workers first. With a large log this takes a long time and as much free disk space as the log.
    It changes what is append-only for the application, so it signs in with WAYBILL_MIGRATION_DATABASE_URL if that is
    set.
    """

    async def work(uow: UnitOfWork) -> Rebased:
        done = await service.rebase(await uow.session.connection())
        await uow.control.audit_consumer("all", "rebase", who(actor), reason)
        uow.record_act(Action.log_rebased, "events", reason=reason, by=who(actor))
        return done

    confirm("are the API and the workers stopped?", yes=yes)
    with plain_errors():
        done = in_one(work, by_owner=True)
    if done.sequences:
        say(f"These sequences continue after the values in their tables: {', '.join(done.sequences)}.")
    if done.events or done.consumers:
        say(f"{counted(done.events, 'event')} and {counted(len(done.consumers), 'consumer')} have new transaction ids.")
    say("The database is adapted to this cluster.")
