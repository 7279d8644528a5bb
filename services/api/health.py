"""Liveness and readiness."""

import asyncio
from typing import Literal, TypeAlias

from fastapi import APIRouter, Response
from pydantic import BaseModel

from services.api.canary import CanaryState
from services.api.checked import CheckedRoute
from services.api.dependencies import State
from services.api.probe import DatabaseState, RedisState
from services.api.rate_classes import RateClass, rate_class
from services.api.rights import public
from services.replica import ReplicaState
from services.startup import SchemaState

router = APIRouter(route_class=CheckedRoute, tags=["health"])

ClockState: TypeAlias = Literal["ok", "wrong"]
ReplicaUse: TypeAlias = ReplicaState | Literal["none"]


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`ready` is whether requests should be sent here.

    It means that the database accepts writes and has the tables of this release, the canary's last write was kept, and
    this host's clock is close enough to the database's. `read_only`: this server was demoted or is configured to refuse
    writes. `copied`: the database came from another cluster; the log names the command that adapts it. `missing`,
    `behind`: the database has to be migrated. `pending`: the canary has not finished an attempt since the process
    started. Redis is a hint: without it Waybill keeps serving, but orders are processed later. `replica` is `none` if
    none is configured; unless it is `ok`, everything is read from the primary, and the log says why.
    """

    ready: bool
    database: DatabaseState
    tables: SchemaState
    redis: RedisState
    replica: ReplicaUse
    canary: CanaryState
    clock: ClockState


@router.get("/healthz")
@public
@rate_class(RateClass.internal)
async def read_health() -> Health:
    """Whether the process is alive."""
    return Health()


@router.get(
    "/readyz",
    responses={
        503: {
            "model": Readiness,
            "description": "The database cannot be reached, lacks tables, refuses or loses writes, or the clock is "
            "wrong.",
        }
    },
)
@public
@rate_class(RateClass.internal)
async def read_readiness(state: State, response: Response) -> Readiness:
    """Whether the process can serve requests. Answers within about 2 s, whatever hangs; answers are cached for 1 s."""
    database, redis = await asyncio.gather(state.probe.database(), state.probe.redis())
    canary = state.canary.state
    # The log and `waybill_clock_skew_seconds` say more about the clock.
    clock: ClockState = "ok" if state.skew.complaint is None else "wrong"
    # Of the last answer, if there is none now.
    tables = state.probe.schema.state
    replica: ReplicaUse = "none" if state.database.replica is None else state.database.replica.state
    ready = database == "ok" and tables == "ok" and canary != "failed" and clock == "ok"
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Readiness(
        ready=ready, database=database, tables=tables, redis=redis, replica=replica, canary=canary, clock=clock
    )
