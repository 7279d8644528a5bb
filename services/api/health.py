"""Liveness and readiness."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.api.dependencies import State

router = APIRouter(tags=["health"])

_PATIENCE = 2.0
"""Seconds that a dependency may take to answer."""


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`ready` is whether requests should be sent here: the database answers, and this host's clock is near enough.

    Redis is a hint: without it Waybill serves on, only slower.
    """

    ready: bool
    database: Literal["ok", "unreachable"]
    redis: Literal["ok", "unreachable"]


@router.get("/healthz")
async def read_health() -> Health:
    """Whether the process is alive."""
    return Health()


@router.get(
    "/readyz",
    responses={
        503: {"model": Readiness, "description": "The database cannot be reached, or this host's clock is too far off."}
    },
)
async def read_readiness(state: State, response: Response) -> Readiness:
    """Whether the process can serve requests."""
    database, redis = await asyncio.gather(_database_answers(state), _redis_answers(state))
    # The log and `waybill_clock_skew_seconds` say more of the clock.
    ready = database and state.skew.complaint is None
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Readiness(ready=ready, database="ok" if database else "unreachable", redis="ok" if redis else "unreachable")


async def _database_answers(state: State) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE), state.database.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError, TimeoutError):
        return False
    return True


async def _redis_answers(state: State) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE):
            await state.redis.execute_command("PING")  # type: ignore[no-untyped-call]
    except (RedisError, OSError, TimeoutError):
        return False
    return True
