"""Objects that live as long as the application."""

from dataclasses import dataclass

from fastapi import Request
from redis.asyncio import Redis

from services.analytics import Analytics
from services.api.canary import Canary
from services.api.groups import Groups
from services.api.probe import Probe
from services.api.rate_limits import RateLimits
from services.api.reads import Reads
from services.api.request_times import RequestTimes
from services.api.run_queue import RunQueue
from services.api.seen_keys import SeenKeys
from services.api.tokens import Tokens
from services.api.waiting import WaitingEvents
from services.database import Database
from services.outbox.doorbell import Doorbell
from services.outbox.events import Trace
from services.settings import Settings
from services.skew import Skew
from services.users.passwords import Passwords


@dataclass(frozen=True, slots=True)
class ApiState:
    """Created and disposed of in the lifespan."""

    settings: Settings
    database: Database
    analytics: Analytics | None
    reads: Reads
    groups: Groups
    redis: Redis
    doorbell: Doorbell
    probe: Probe
    waiting: WaitingEvents
    canary: Canary
    passwords: Passwords
    tokens: Tokens
    seen_keys: SeenKeys
    rate_limits: RateLimits
    request_times: RequestTimes
    run_queue: RunQueue
    skew: Skew


def trace_of(request: Request) -> Trace:
    """The trace that the events of this request carry."""
    return Trace(getattr(request.state, "request_id", None), getattr(request.state, "traceparent", None))


def api_state(request: Request) -> ApiState:
    state: ApiState = request.app.state.waybill
    return state
