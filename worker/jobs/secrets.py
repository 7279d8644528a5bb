"""Scheduled encryption of secrets with a new key."""

import logging
from typing import Any

from services.users.totp.codes import Secrets
from services.users.totp.service import old_secrets
from worker.context import WorkerContext
from worker.jobs.sweeping import run_sweeps

logger = logging.getLogger(__name__)

_SECRETS_PER_TRANSACTION = 200


async def reencrypt_secrets(ctx: dict[str, Any]) -> None:
    """Encrypt the secrets of second factors with the current key which were encrypted with the previous one."""
    worker: WorkerContext = ctx["worker"]
    secrets = Secrets.from_settings(worker.settings)
    for key_id in secrets.previous_ids:
        sweep = old_secrets(secrets, key_id)
        ended = await run_sweeps(worker.open_unit_of_work, [sweep], slice_size=_SECRETS_PER_TRANSACTION)
        if ended[sweep.name]:
            logger.info("secrets encrypted with the new key", extra={"secrets": ended[sweep.name]})
