"""The statements that group dead letters, without reading more of them than a page may."""

from services.outbox.inspection.schemas import BUCKETS
from services.sql import Statement

_SHOWN = 2000
"""How much of the end of an error is read for its summary."""

# A loose index scan: one look-up for each kind, and one for its latest letter, however many letters a kind has. The
# ORDER BY of both columns keeps the planner on the index, whatever the statistics.
KINDS = Statement("""
    WITH RECURSIVE kind(fingerprint, number) AS (
        (SELECT fingerprint, 1 FROM dead_letters ORDER BY dead_letters.fingerprint, died_at LIMIT 1)
        UNION ALL
        SELECT next.fingerprint, number + 1 FROM kind CROSS JOIN LATERAL (
            SELECT dead_letters.fingerprint FROM dead_letters WHERE dead_letters.fingerprint > kind.fingerprint
            ORDER BY dead_letters.fingerprint, died_at LIMIT 1
        ) AS next WHERE number < :most
    )
    SELECT kind.fingerprint, latest.* FROM kind CROSS JOIN LATERAL (
        SELECT position, type, reason, died_at AS last_at FROM dead_letters
        WHERE dead_letters.fingerprint = kind.fingerprint
        ORDER BY dead_letters.fingerprint DESC, died_at DESC LIMIT 1
    ) AS latest
""")

KIND = Statement("""
    SELECT fingerprint, position, type, reason, died_at AS last_at FROM dead_letters
    WHERE fingerprint = :fingerprint ORDER BY fingerprint DESC, died_at DESC LIMIT 1
""")

# Each part reads from an index, up to its limit: `counted` and one more of each kind, and `most` in each span of time.
GROUPS = Statement(f"""
    SELECT shown.fingerprint, counts.letters, counts.aggregates, (
        SELECT died_at FROM dead_letters WHERE dead_letters.fingerprint = shown.fingerprint
        ORDER BY dead_letters.fingerprint, died_at LIMIT 1
    ) AS first_at, (
        SELECT right(error, {_SHOWN}) FROM dead_letters WHERE dead_letters.position = shown.position
    ) AS error, ARRAY(
        SELECT (
            SELECT count(*) FROM (
                SELECT FROM dead_letters WHERE dead_letters.fingerprint = shown.fingerprint
                AND died_at >= CAST(:starts_at AS timestamptz) + n * CAST(:span AS interval)
                AND died_at < CAST(:starts_at AS timestamptz) + (n + 1) * CAST(:span AS interval)
                ORDER BY dead_letters.fingerprint, died_at LIMIT :most
            ) AS bounded
        ) FROM generate_series(0, {BUCKETS - 1}) AS n ORDER BY n
    ) AS history
    FROM unnest(CAST(:fingerprints AS text[]), CAST(:positions AS bigint[])) WITH ORDINALITY
        AS shown(fingerprint, position, number)
    CROSS JOIN LATERAL (
        SELECT count(*) AS letters, count(DISTINCT aggregate) AS aggregates FROM (
            SELECT aggregate FROM dead_letters WHERE dead_letters.fingerprint = shown.fingerprint
            ORDER BY died_at LIMIT :counted + 1
        ) AS bounded
    ) AS counts
    ORDER BY shown.number
""")  # noqa: S608

PAUSED = Statement("SELECT FROM outbox_types WHERE type = :type AND paused")

NOW = Statement("SELECT statement_timestamp() AS at")
