"""Second factors in tests: what a person does with an authenticator app."""

import base64
from dataclasses import dataclass, field
from typing import Any

import httpx2

from services.users.models import User
from services.users.totp.codes import code_at, current_step
from tests.api.client import Api
from tests.factories import PASSWORD

PATH = "/v1/users/me/totp"


@dataclass
class App:
    """An authenticator app. Each code is that of the step after the one before, which is accepted as well."""

    secret: bytes
    recovery_codes: list[str] = field(default_factory=list)

    def code(self, ahead: int = 0) -> str:
        return code_at(self.secret, current_step() + ahead)

    def wrong_code(self) -> str:
        """A code that is not valid now, nor soon."""
        valid = {self.code(ahead) for ahead in range(-2, 5)}
        return next(code for code in map("{:06d}".format, range(10)) if code not in valid)


async def start(api: Api, user: User) -> App:
    """Get a secret, and do not confirm it."""
    reply = await api.post(PATH, by=user, key=None, json={"current_password": PASSWORD})
    assert reply.status_code == 201, reply.text
    return App(base64.b32decode(reply.json()["secret"]))


async def enrol(api: Api, user: User) -> App:
    """Set up a second factor. Its latest code, which has been used, is made a step older."""
    app = await start(api, user)
    reply = await api.post(f"{PATH}/confirm", by=user, key=None, json={"otp": app.code()})
    assert reply.status_code == 200, reply.text
    app.recovery_codes = reply.json()["recovery_codes"]
    await time_passes(api)
    return app


async def time_passes(api: Api) -> None:
    """As if the latest codes had been used ten minutes earlier."""
    await api.execute("UPDATE totp_secrets SET last_step = last_step - 20")


async def sign_in(api: Api, user: User, otp: str | None = None, password: str = PASSWORD) -> httpx2.Response:
    form: dict[str, Any] = {"username": user.email, "password": password}
    return await api.client.post("/v1/token", data=form if otp is None else form | {"otp": otp})
