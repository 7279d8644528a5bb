"""The check of Redis."""

from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from services.cli.doctor.findings import Checked, Finding, note, problem, warning
from services.cli.doctor.installation import Installation

_SECTIONS = ("server", "memory", "persistence", "replication")
_OLDEST = 6
_NEARLY_FULL = 0.9
_WHAT_IT_HOLDS = "It holds rate counts, jobs that were requested through ARQ, and wake-ups for workers"


async def redis(at: Installation) -> Checked:
    """Whether Redis answers and keeps what it is given. It holds hints only, so its loss costs time, but no event."""
    told: dict[str, Any] = {}
    try:
        await at.redis.execute_command("PING")  # type: ignore[no-untyped-call]
        for section in _SECTIONS:
            told |= await at.redis.info(section)
    except NoPermissionError:
        return Checked("it answers, but this user may not ask for INFO")
    except (RedisError, OSError, TimeoutError) as error:
        return Checked("it does not answer", [_away(error)])
    return Checked(_describe(told), judge(told))


def judge(told: dict[str, Any]) -> list[Finding]:
    """What to say about what Redis tells of itself (INFO)."""
    findings: list[Finding] = []
    limit, used, policy = (told.get(name, 0) for name in ("maxmemory", "used_memory", "maxmemory_policy"))
    if policy and policy != "noeviction":
        findings.append(
            (warning if limit else note)(
                f"Redis evicts keys when its memory is full (maxmemory-policy {policy})",
                f"{_WHAT_IT_HOLDS}; all of it may vanish. No event is lost, but limits stop counting.",
                "Set maxmemory-policy to noeviction, in redis.conf as well.",
                "redis-cli CONFIG SET maxmemory-policy noeviction",
            )
        )
    elif limit and used > _NEARLY_FULL * limit:
        findings.append(
            warning(
                f"Redis uses {used / limit:.0%} of its memory (maxmemory)",
                "When it is full, it refuses writes: workers are no longer woken, and limits stop counting.",
                "Raise maxmemory, or find out what else is stored there.",
                "redis-cli --bigkeys",
            )
        )
    if told.get("role") == "slave":
        findings.append(
            problem(
                "WAYBILL_REDIS_URL leads to a replica, which refuses writes",
                "Workers are not woken, and requests are not counted.",
                "Point WAYBILL_REDIS_URL at the primary Redis.",
            )
        )
    if "err" in (told.get("rdb_last_bgsave_status"), told.get("aof_last_write_status")):
        findings.append(
            warning(
                "Redis cannot save its data",
                "By default it then refuses writes (stop-writes-on-bgsave-error).",
                "Read its log: usually the disk is full or the folder not writable.",
                "redis-cli INFO persistence",
            )
        )
    major = str(told.get("redis_version", "")).partition(".")[0]
    if major.isdigit() and int(major) < _OLDEST:
        findings.append(
            problem(
                f"Redis {told['redis_version']} is too old: Waybill needs {_OLDEST} or newer",
                "Commands that Waybill uses may be missing.",
                "Upgrade it; nothing in it has to be taken along.",
            )
        )
    return findings


def _describe(told: dict[str, Any]) -> str:
    name = "Valkey" if "valkey_version" in told else "Redis"
    version = told.get("valkey_version") or told.get("redis_version", "?")
    kept = "an append-only file" if told.get("aof_enabled") else "no append-only file, which is not needed"
    return f"{name} {version}, {told.get('maxmemory_policy', '?')}, {kept}"


def _away(error: Exception) -> Finding:
    refused = isinstance(error, AuthenticationError)
    why = " ".join(str(error).split()) or type(error).__name__
    return problem(
        f"Redis {'refuses the password or user' if refused else 'does not answer'}: {why}",
        "Events are still processed, but up to WAYBILL_OUTBOX_POLL_INTERVAL later, and requests are not limited "
        "across processes.",
        "Correct WAYBILL_REDIS_URL." if refused else "Start Redis, or correct WAYBILL_REDIS_URL.",
        "redis-cli PING",
    )
