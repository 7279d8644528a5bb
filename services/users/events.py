"""Events about users."""

from typing import ClassVar

from pydantic import Field

from services.outbox.events import Event


class UserRegistered(Event):
    """A user registered, and an account was opened for them."""

    type: ClassVar[str] = "user.registered"

    user_id: int = Field(description="The user.")

    @property
    def aggregate(self) -> str:
        return f"user/{self.user_id}"
