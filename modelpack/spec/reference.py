"""References: `[host[:port]/]repo[:tag][@digest]` or `oci:DIR[:tag][@digest]`.

The grammar is that of distribution-spec v1.1 ("Pulling manifests"); the default registry is
Docker Hub, as everywhere else.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from modelpack.spec.digest import Digest
from modelpack.spec.errors import BadReference

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST: Final = re.compile(
    r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)(?::[0-9]{1,5})?"
)
_LONGEST: Final = 1024
_FORM: Final = "[host[:port]/]repository[:tag][@sha256:...] or oci:DIRECTORY[:tag]"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an artifact lives. Exactly one of (`registry`, `repository`) and `layout` is set."""

    registry: str = ""
    repository: str = ""
    layout: str = ""
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; raises BadReference naming the part that is wrong."""
        rest, at, digest_text = text.rpartition("@")
        if not at:
            rest, digest_text = text, ""
        if at and ("/" in digest_text or len(text) > _LONGEST):
            raise BadReference(
                f"{text[:40]!r}...: a reference carries no user and password",
                hint="modelpack login HOST",
            )
        digest = Digest.parse(digest_text) if at else None
        if rest.startswith("oci:"):
            return cls._parse_layout(rest[4:], digest)
        if "://" in rest:
            raise BadReference(f"{text!r}: a reference has no scheme; expected {_FORM}")
        name, tag = _split_tag(rest)
        registry, repository = _split_registry(name)
        port = registry.rpartition("]")[2].rpartition(":")[2] if ":" in registry else ""
        if not _HOST.fullmatch(registry) or len(registry) > 255 or (port and not _is_port(port)):
            raise BadReference(f"{text!r}: {registry!r} is not a host; expected {_FORM}")
        if len(repository) > 255 or not _REPOSITORY.fullmatch(repository):
            raise BadReference(
                f"{text!r}: {repository!r} is not a repository name; use lower-case letters, "
                f"digits, '.', '_', '-' and '/'"
            )
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)

    @classmethod
    def _parse_layout(cls, text: str, digest: Digest | None) -> Self:
        directory, colon, tag = text.rpartition(":")
        # "oci:/a:b/c" has its last colon inside the directory, so there is no tag.
        if not colon or "/" in tag:
            directory, tag, colon = text, "", ""
        if colon and not TAG.fullmatch(tag):
            raise BadReference(f"'oci:{text}': {tag!r} is not a tag")
        if not directory:
            raise BadReference(f"'oci:{text}': the directory is missing; expected oci:DIR[:tag]")
        return cls(layout=directory, tag=tag, digest=digest)

    @property
    def name(self) -> str:
        """The reference without tag and digest."""
        return f"oci:{self.layout}" if self.layout else f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag, else latest."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    def at(self, digest: Digest) -> "Reference":
        """Return the same place, pinned to `digest`."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")


def _is_port(text: str) -> bool:
    return text.isdigit() and 0 < int(text) < 1 << 16


def _split_tag(text: str) -> tuple[str, str]:
    head, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        return text, ""
    if not TAG.fullmatch(tag):
        raise BadReference(f"{text!r}: {tag!r} is not a tag; expected {_FORM}")
    return head, tag


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        if first in ("index.docker.io", "registry-1.docker.io"):
            first = DEFAULT_REGISTRY
        return first, rest if first != DEFAULT_REGISTRY or "/" in rest else f"library/{rest}"
    return DEFAULT_REGISTRY, name if slash else f"library/{name}"
