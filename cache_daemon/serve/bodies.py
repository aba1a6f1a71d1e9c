"""What requests may say: validated, bounded, nothing unknown."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cache_daemon.api.values import Owner, Priority
from cache_daemon.fetch.node import Ask
from modelpack.oci.credentials import Credential

_Text = Annotated[str, Field(max_length=512)]
_Pattern = Annotated[str, Field(max_length=1024)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CredentialBody(_Body):
    """A registry credential. Kept in memory, for this request and the fetch it starts."""

    username: _Text = ""
    password: SecretStr = SecretStr("")
    identity_token: SecretStr = SecretStr("")
    registry_token: SecretStr = SecretStr("")


class WantBody(_Body):
    """A model: reference, files (patterns as in `modelpack pull`), on whose behalf."""

    ref: Annotated[str, Field(min_length=1, max_length=1024, examples=["ghcr.io/llm/llama:v3"])]
    include: Annotated[list[_Pattern], Field(max_length=100)] = []
    exclude: Annotated[list[_Pattern], Field(max_length=100)] = []
    namespace: Annotated[
        str, Field(max_length=63, description="whose quota it counts for; a Kubernetes namespace")
    ] = ""
    credential: CredentialBody | None = None

    def ask(self, priority: Priority) -> Ask:
        """Return it as a value."""
        given = self.credential
        credential = None
        if given is not None:
            credential = Credential(
                given.username,
                given.password.get_secret_value(),
                given.identity_token.get_secret_value(),
                given.registry_token.get_secret_value(),
            )
        return Ask(
            ref=self.ref,
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            priority=priority,
            namespace=self.namespace,
            credential=credential,
        )


class EnsureBody(WantBody):
    """A model that is to come to the node. `until` and `deadline` are seconds since the epoch.

    Of two models with one priority, the one with the earlier deadline is fetched first.
    """

    priority: Priority = Priority.PREFETCH
    pin: bool = False
    until: Annotated[float, Field(ge=0, le=1e11)] = 0.0
    deadline: Annotated[float, Field(ge=0, le=1e11)] = 0.0


class OwnerBody(_Body):
    """Who holds a lease."""

    kind: _Text = "process"
    name: _Text = ""
    namespace: _Text = ""
    uid: _Text = ""

    def value(self) -> Owner:
        """Return it as a value."""
        return Owner(self.kind, self.name, self.namespace, self.uid)


class LeaseBody(WantBody):
    """A hold on a model; waits at most `seconds` for it to arrive."""

    owner: OwnerBody = OwnerBody()
    seconds: Annotated[float, Field(ge=0, le=110)] = 0.0
    warm: bool = False


class WarmBody(_Body):
    """Bring a model into the page cache; waits at most `seconds` for it."""

    seconds: Annotated[float, Field(ge=0, le=110)] = 0.0


class PinBody(_Body):
    """Keep a model; `until` is a time in seconds since the epoch, 0 for ever."""

    until: Annotated[float, Field(ge=0, le=1e11)] = 0.0
    reason: _Text = ""


class RevokeBody(_Body):
    """Whose grants are to be forgotten: those for `registry/repository`, or all."""

    repository: _Text = ""
