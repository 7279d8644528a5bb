"""The API in a process that dies when a reply to a POST is about to go out: `python -m tests.faults.lossy_api PORT`.

With a second argument, it dies only if the request's `Idempotency-Key` begins with that. The application sends a reply
once its transaction is committed, so the kill falls between the commit and the reply.
"""

import os
import signal
import sys

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from services.app import create_app
from services.local.embedded.ports import LOOPBACK

inner = create_app()
fatal = sys.argv[2].encode() if len(sys.argv) > 2 else b""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def die_instead(message: Message) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and _is_fatal(scope):
            os.kill(os.getpid(), signal.SIGKILL)
        await send(message)

    await inner(scope, receive, die_instead)


def _is_fatal(scope: Scope) -> bool:
    key: bytes = dict(scope["headers"]).get(b"idempotency-key", b"")
    return key.startswith(fatal)


if __name__ == "__main__":
    uvicorn.run(app, host=LOOPBACK, port=int(sys.argv[1]), log_level="warning", ws="none")
