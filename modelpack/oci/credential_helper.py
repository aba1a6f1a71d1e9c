"""Programs that keep credentials: docker-credential-NAME (docker/docker-credential-helpers)."""

import json
import subprocess
from dataclasses import dataclass, field
from typing import Final

from modelpack.oci.headers import printable
from modelpack.spec.errors import InputError

_SECONDS: Final = 30.0
_TOKEN_USER: Final = "<token>"  # noqa: S105  # the protocol's name for "no user, a token"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a helper keeps; `username` is empty where `secret` is an identity token."""

    username: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CredentialHelper:
    """One helper. All methods raise InputError if it is not installed, fails or does not answer."""

    name: str

    @property
    def program(self) -> str:
        """What is looked for in PATH."""
        return f"docker-credential-{self.name}"

    def get(self, server: str) -> Kept | None:
        """Return what is kept for a server, if anything."""
        text = self._run("get", server)
        if text is None:
            return None
        try:
            answer = json.loads(text)
            username, secret = str(answer["Username"]), str(answer["Secret"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{self.program}: its answer is not what it should be") from None
        if not secret:
            return None
        return Kept("" if username == _TOKEN_USER else username, secret)

    def store(self, server: str, kept: Kept) -> None:
        """Keep a secret."""
        entry = {
            "ServerURL": server,
            "Username": kept.username or _TOKEN_USER,
            "Secret": kept.secret,
        }
        self._run("store", json.dumps(entry))

    def erase(self, server: str) -> None:
        """Forget a server."""
        self._run("erase", server)

    def _run(self, verb: str, text: str) -> str | None:
        """Run the program; None if it says that it does not know the server."""
        try:
            done = subprocess.run(
                [self.program, verb],
                input=text.encode(),
                capture_output=True,
                check=False,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{self.program}: no answer within {_SECONDS:.0f} s") from None
        except OSError as error:
            problem = error.strerror or error
            raise InputError(
                f"{self.program}: cannot be run ({problem}), but the credentials file names it",
                hint="install it, or remove it from the file",
            ) from error
        if not done.returncode:
            return done.stdout.decode(errors="replace")
        said = printable((done.stdout or done.stderr).decode(errors="replace").strip())
        if "not found" in said.lower():
            return None
        raise InputError(f"{self.program} {verb}: {said or f'exit code {done.returncode}'}")
