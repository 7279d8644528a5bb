"""Events about users."""

from typing import Annotated, ClassVar

from pydantic import Field

from services.outbox.events import PERSONAL, Event


class UserEvent(Event):
    """A fact about one user."""

    user_id: Annotated[int, PERSONAL] = Field(description="The user.")

    @property
    def aggregate(self) -> str:
        return f"user/{self.user_id}"


class UserRegistered(UserEvent):
    """A user registered, and an account was opened for them."""

    type: ClassVar[str] = "user.registered"


class UserEmailChanged(UserEvent):
    """A user has another e-mail address. The log does not keep addresses: it is never changed."""

    type: ClassVar[str] = "user.email_changed"


class UserErased(UserEvent):
    """What identified a user was erased permanently. Anyone who keeps a copy of it should erase that, too."""

    type: ClassVar[str] = "user.erased"
