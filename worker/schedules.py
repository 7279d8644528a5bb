"""The scheduled jobs and when they run."""

from collections.abc import Sequence

from services.mail import sender_of
from services.settings import Settings
from worker.jobs.audit import audit_ledger
from worker.jobs.expiry import expire
from worker.jobs.mails import send_mails
from worker.jobs.reports import report_backlog
from worker.jobs.retention import (
    drop_expired_events,
    ensure_event_partitions,
    forget_workers,
    prune_idempotency_keys,
    prune_sessions,
)
from worker.jobs.schedule import Schedule, ScheduledJob
from worker.jobs.sealing import seal_audit_log
from worker.jobs.secrets import reencrypt_secrets
from worker.jobs.stranded import wake_stranded_events

LONG = 6 * 3600
"""Seconds for a job that may export a month of events. If it is cut short, the next run starts with that month."""


def scheduled_jobs(settings: Settings) -> Sequence[ScheduledJob]:
    """Every job of this release that these settings need."""
    # Without mail, six runs a minute would find nothing.
    mails = (ScheduledJob(send_mails, Schedule(second=frozenset(range(5, 60, 10)))),) if sender_of(settings) else ()
    # At the start as well: the key is replaced by a restart.
    secrets = (ScheduledJob(reencrypt_secrets, Schedule(minute=50), at_start=True),)
    return (
        *mails,
        ScheduledJob(seal_audit_log, Schedule(second=frozenset(range(0, 60, 10)))),
        *(secrets if settings.secret_key_previous else ()),
        ScheduledJob(ensure_event_partitions, Schedule(minute=10), at_start=True),
        ScheduledJob(drop_expired_events, Schedule(hour=1, minute=40), time_limit=LONG),
        ScheduledJob(forget_workers, Schedule(minute=35)),
        ScheduledJob(prune_idempotency_keys, Schedule(minute=25)),
        ScheduledJob(prune_sessions, Schedule(minute=45)),
        ScheduledJob(wake_stranded_events, Schedule(minute=15), at_start=True),
        ScheduledJob(expire, Schedule(second=frozenset({30}))),
        ScheduledJob(report_backlog, Schedule()),
        # It has its own, shorter time limit.
        ScheduledJob(audit_ledger, Schedule(minute=40), time_limit=settings.audit_time_limit + 60),
    )
