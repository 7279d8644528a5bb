"""The statements that count what waits and what is dead: by type, by reason, and altogether."""

from services.outbox.engine.queries import LIVE, dead_before
from services.sql import Statement


def types_in(table: str, name: str, condition: str, order: str = "type") -> str:
    """A recursive query: the types of the table's rows that match, each with the aggregate of one row.

    It is a loose index scan: one look-up for each type, however many rows there are.
    """
    return f"""
        {name}(type, aggregate) AS (
            (SELECT type, aggregate FROM {table} WHERE {condition} ORDER BY {order} LIMIT 1)
            UNION ALL
            SELECT following.* FROM {name} CROSS JOIN LATERAL (
                SELECT {table}.type, {table}.aggregate FROM {table} WHERE {condition} AND {table}.type > {name}.type
                ORDER BY {table}.{order} LIMIT 1
            ) AS following
        )
    """  # noqa: S608


_READY = "available_at IS NULL"
TIMED = "available_at < 'infinity'"
_BEHIND = "available_at = 'infinity'"

# What waits is in two indexes by type: until a time, and until another event is out of the way.
_FOUND = f"""
    {types_in("outbox", "ready", _READY)}, {types_in("outbox", "timed", TIMED, "type, available_at")},
    {types_in("outbox", "behind", _BEHIND, "type, position")},
    waiting(type, aggregate) AS (SELECT type, aggregate FROM timed UNION ALL SELECT type, aggregate FROM behind),
    {types_in("dead_letters", "dead", "true", "type, position")}
"""  # noqa: S608


def _counted(of: str, condition: str, order: str, most: str = ":counted + 1") -> str:
    """Counts the outbox rows of the type of `of`, up to `most`, in the order of the index that has no others.

    The type is a range: with an equality, another index would have this order, too.
    """
    return f"""
        (SELECT count(*) FROM (
            SELECT FROM outbox WHERE outbox.type BETWEEN {of}.type AND {of}.type AND {condition}
            ORDER BY outbox.{order} LIMIT {most}
        ) AS bounded)
    """  # noqa: S608


_HANDLED = f"""
    SELECT handled.type, count(*) AS workers FROM workers
    CROSS JOIN LATERAL jsonb_array_elements_text(report -> 'types') AS handled(type) WHERE {LIVE} GROUP BY 1
"""  # noqa: S608

# Of the log, only the end is read: it has no index on the type.
NAMES = Statement(f"""
    WITH RECURSIVE {_FOUND}, logged AS (SELECT type FROM events ORDER BY position DESC LIMIT 10000)
    SELECT type FROM ready UNION SELECT type FROM waiting UNION SELECT type FROM ({_HANDLED}) AS handled
    UNION SELECT type FROM dead UNION SELECT type FROM outbox_types UNION SELECT type FROM logged
""")  # noqa: S608

# All events of a type are about the same kind of aggregate, so one event of each type is enough.
KINDS = Statement(f"""
    WITH RECURSIVE {_FOUND}
    SELECT DISTINCT split_part(aggregate, '/', 1) AS kind FROM (
        SELECT aggregate FROM ready UNION ALL SELECT aggregate FROM waiting UNION ALL SELECT aggregate FROM dead
    ) AS found ORDER BY kind
""")  # noqa: S608

TYPES = Statement(f"""
    WITH RECURSIVE {_FOUND}, handled AS ({_HANDLED}), known AS (
        SELECT type FROM ready UNION SELECT type FROM waiting UNION SELECT type FROM handled UNION SELECT type FROM dead
        UNION SELECT type FROM outbox_types
    )
    SELECT known.type,
        {_counted("known", _READY, "type, position")} AS ready,
        {_counted("known", TIMED, "type, available_at, position")}
            + {_counted("known", _BEHIND, "type, position")} AS waiting,
        CAST(extract(epoch FROM statement_timestamp() - (
            SELECT occurred_at FROM events WHERE id = (
                SELECT event_id FROM outbox WHERE outbox.type BETWEEN known.type AND known.type
                AND available_at IS NULL ORDER BY outbox.type, position LIMIT 1
            )
        )) AS double precision) AS oldest_ready_seconds,
        coalesce(control.paused, false) AS paused, control.max_batches, control.changed_at, control.changed_by,
        (SELECT count(*) FROM (
            -- A range, so that only the index by type has this order.
            SELECT FROM dead_letters WHERE type BETWEEN known.type AND known.type
            ORDER BY dead_letters.type, position LIMIT :counted + 1
        ) AS bounded) AS dead_letters, coalesce(handled.workers, 0) AS workers
    FROM known LEFT JOIN outbox_types AS control ON control.type = known.type
    LEFT JOIN handled ON handled.type = known.type
    ORDER BY known.type
""")  # noqa: S608

_PARKED = f"""
    (
        EXISTS (SELECT {dead_before("found")}) OR coalesce((
            SELECT earlier.available_at > clock_timestamp() FROM outbox AS earlier
            WHERE earlier.aggregate = found.aggregate AND earlier.position < found.position
            AND earlier.available_at IS NOT NULL AND earlier.waits <> 'asked'
            ORDER BY earlier.aggregate, earlier.position LIMIT 1
        ), false)
    )
"""  # noqa: S608
"""Whether a row waits, or will as soon as a claim finds it, behind a dead letter or an event that is not due yet."""

_PAUSED = "EXISTS (SELECT FROM outbox_types WHERE outbox_types.type = {type} AND paused)"

PLAN_BY_INDEX = Statement("SELECT set_config(name, 'off', true) FROM unnest(CAST(:names AS text[])) AS name")

# No part reads more than `counted` + 1 rows, or so many of each type, if it is planned without bitmaps and sorts: with
# outdated statistics, the planner would sort all waiting rows. The statement restores these settings. What is parked is
# not due: rows that wait for a worker that knows their type, for a time in the future, or behind a dead letter or a row
# that waits; and rows of a paused type.
# How many are retried is a statement of its own: no index knows it, so each row has to be read.
BACKLOG = Statement(f"""
    WITH RECURSIVE {types_in("outbox", "ready", _READY)}, {types_in("outbox", "timed", TIMED)},
    due AS (
        SELECT (SELECT occurred_at FROM events WHERE id = first.event_id) AS since FROM ready CROSS JOIN LATERAL (
            SELECT event_id FROM (
                SELECT type, position, event_id, aggregate FROM outbox
                WHERE outbox.type BETWEEN ready.type AND ready.type AND available_at IS NULL
                ORDER BY type, position LIMIT :counted
            ) AS found WHERE NOT {_PARKED} ORDER BY type, position LIMIT 1
        ) AS first WHERE NOT {_PAUSED.format(type="ready.type")}
        UNION ALL SELECT first.available_at FROM timed CROSS JOIN LATERAL (
            SELECT available_at FROM (
                SELECT position, aggregate, available_at, waits FROM outbox
                WHERE outbox.type = timed.type AND available_at < 'infinity' AND available_at <= statement_timestamp()
                ORDER BY available_at, position LIMIT :counted
            ) AS found WHERE waits <> 'unknown' AND NOT {_PARKED}
            ORDER BY available_at, position LIMIT 1
        ) AS first WHERE NOT {_PAUSED.format(type="timed.type")}
    )
    SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT :counted + 1) AS bounded) AS waiting,
        (SELECT count(*) FROM (SELECT FROM dead_letters LIMIT :counted + 1) AS bounded) AS dead_letters,
        coalesce((SELECT extract(epoch FROM clock_timestamp() - min(since)) FROM due), 0)::float AS oldest_due_seconds,
        set_config('enable_bitmapscan', 'on', true) || set_config('enable_sort', 'on', true) AS planned
""")  # noqa: S608

RETRYING = Statement(f"""
    WITH RECURSIVE {types_in("outbox", "timed", TIMED)}
    SELECT count(*) AS retrying FROM timed CROSS JOIN LATERAL (
        SELECT attempts FROM outbox WHERE outbox.type = timed.type AND available_at < 'infinity'
        ORDER BY available_at, position LIMIT :counted + 1
    ) AS row WHERE attempts > 0
""")  # noqa: S608

WAITING = Statement(f"""
    WITH RECURSIVE {types_in("outbox", "ready", _READY)}, {types_in("outbox", "timed", TIMED)},
    {types_in("outbox", "behind", _BEHIND, "type, position")}, found AS (
        SELECT ready.type, 'ready' AS reason, row.events, row.events AS due FROM ready CROSS JOIN LATERAL (
            SELECT {_counted("ready", _READY, "type, position", ":counted")} AS events
        ) AS row
        UNION ALL SELECT timed.type, row.* FROM timed CROSS JOIN LATERAL (
            SELECT waits, count(*), count(*) FILTER (WHERE available_at <= clock_timestamp() AND waits <> 'unknown')
            FROM (
                SELECT waits, available_at FROM outbox
                WHERE outbox.type = timed.type AND available_at < 'infinity'
                ORDER BY available_at, position LIMIT :counted
            ) AS soonest GROUP BY waits
        ) AS row
        UNION ALL
        SELECT type, 'behind', {_counted("behind", _BEHIND, "type, position", ":counted")}, 0 FROM behind
    )
    SELECT type, reason, least(sum(events), :counted)::bigint AS events, sum(due)::bigint AS due,
        {_PAUSED.format(type="found.type")} AS paused
    FROM found GROUP BY type, reason
""")  # noqa: S608
