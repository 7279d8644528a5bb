"""SQL that seals the audit log, and that checks its chain.

A row's content is a JSON array of its columns, the time in microseconds since 1970, as PostgreSQL's `jsonb` writes it.
The hash of a row is the SHA-256 of the hash before it and this text; before the first row, it is 32 zero bytes.
"""

from services.sql import Statement

_CONTENT = """
    convert_to(jsonb_build_array(id, (extract(epoch FROM at) * 1000000)::bigint, actor, user_id, action, object, reason,
        details, number, request_id, address)::text, 'UTF8')
"""

TOO_LONG = 300
"""Seconds after which a row must have been sealed."""

LOCK_HEAD = Statement("SELECT position, hash FROM audit_log_head WHERE id = 1 FOR UPDATE")

# A row with a lower id may be committed later than others: its place is after those that were sealed before.
UNSEALED = Statement(f"""
    SELECT id, {_CONTENT} AS content FROM audit_log WHERE position IS NULL ORDER BY id LIMIT :limit
""")  # noqa: S608

SEAL = Statement("""
    UPDATE audit_log SET position = seal.position, hash = seal.hash
    FROM unnest(CAST(:ids AS bigint[]), CAST(:positions AS bigint[]), CAST(:hashes AS bytea[]))
        AS seal(id, position, hash)
    WHERE audit_log.id = seal.id AND audit_log.position IS NULL
""")

MOVE_HEAD = Statement("""
    UPDATE audit_log_head SET position = :position, hash = :hash, sealed_at = clock_timestamp() WHERE id = 1
""")

# A row that follows a gap cannot be judged by itself.
_CHAIN = Statement(f"""
    SELECT CASE WHEN gap THEN 'audit_log_removed' ELSE 'audit_log_changed' END AS kind, position,
        CASE WHEN gap THEN 'position ' || coalesce(before, 0) + 1 ELSE encode(right_hash, 'hex') END AS expected,
        CASE WHEN gap THEN 'position ' || position ELSE encode(hash, 'hex') END AS found
    FROM (
        SELECT position, hash, before, position <> coalesce(before, 0) + 1 AS gap,
            sha256(coalesce(hash_before, decode(repeat('00', 32), 'hex')) || {_CONTENT}) AS right_hash
        FROM (
            SELECT *, lag(position) OVER in_order AS before, lag(hash) OVER in_order AS hash_before
            FROM audit_log WHERE position IS NOT NULL WINDOW in_order AS (ORDER BY position)
        ) AS sealed
    ) AS chained
    WHERE gap OR hash IS DISTINCT FROM right_hash
""")  # noqa: S608

_HEAD = Statement("""
    SELECT 'audit_log_cut' AS kind, head.position || ' ' || encode(head.hash, 'hex') AS expected,
        last.position || ' ' || encode(last.hash, 'hex') AS found
    FROM (VALUES (1)) AS one
    LEFT JOIN audit_log_head AS head ON true
    LEFT JOIN (SELECT position, hash FROM audit_log WHERE position IS NOT NULL ORDER BY position DESC LIMIT 1)
        AS last ON true
    WHERE head.position IS NULL
    OR (head.position, head.hash) IS DISTINCT FROM
        (coalesce(last.position, 0), coalesce(last.hash, decode(repeat('00', 32), 'hex')))
""")

_UNSEALED_TOO_LONG = Statement(f"""
    SELECT 'audit_log_unsealed' AS kind, 'none' AS expected,
        count(*) || ', the oldest since ' || to_char(min(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'
            AS found
    FROM audit_log WHERE position IS NULL AND at < now() - interval '{TOO_LONG} seconds' HAVING count(*) > 0
""")  # noqa: S608

CHECKS = (_CHAIN, _HEAD, _UNSEALED_TOO_LONG)
"""The checks of the chain. They read a single snapshot, in which a row is sealed together with the head."""

# A head that was noted elsewhere, such as in the log of a worker.
NOTED_HEAD = Statement("""
    SELECT 'audit_log_cut' AS kind, noted.position || ' ' || encode(noted.hash, 'hex') AS expected,
        audit_log.position || ' ' || encode(audit_log.hash, 'hex') AS found
    FROM (SELECT CAST(:position AS bigint) AS position, CAST(:hash AS bytea) AS hash) AS noted
    LEFT JOIN audit_log USING (position)
    WHERE audit_log.hash IS DISTINCT FROM noted.hash
""")

NEWEST = Statement("SELECT id FROM audit_log ORDER BY id DESC LIMIT 1")
