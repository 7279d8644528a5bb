"""Replies that are files, and their rows in the audit log."""

from collections.abc import AsyncIterator, Sequence

from fastapi import Request
from fastapi.responses import StreamingResponse

from services.acting import Action
from services.api.transaction import ahead
from services.exports import MEDIA_TYPES, Format, begun

_LONGEST = 500
"""Characters of the filters in the audit log."""


async def attachment(pieces: AsyncIterator[bytes], name: str, form: Format) -> StreamingResponse:
    """The file `name.form`. What its first piece raises is raised here, before the reply begins."""
    return StreamingResponse(
        await begun(pieces),
        media_type=MEDIA_TYPES[form],
        headers={"Content-Disposition": f'attachment; filename="{name}.{form.value}"'},
    )


async def record_export(request: Request, action: Action, exported: str, form: Format, filters: Sequence[str]) -> None:
    """Write to the audit log that something is exported, and commit that. As for `ahead`."""
    async with ahead(request) as recording:
        said = " ".join(filters)[:_LONGEST]
        recording.record_act(action, exported, format=form.value, filters=said)
