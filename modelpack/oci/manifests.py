"""Manifests and tags of a repository (distribution-spec v1.1)."""

from typing import Final

import msgspec

from modelpack.oci.answers import body, check
from modelpack.oci.exchange import DELETE, PUSH, Exchange
from modelpack.oci.headers import printable
from modelpack.oci.pages import pages
from modelpack.spec import limits, media
from modelpack.spec.digest import Digest
from modelpack.spec.errors import Denied, IntegrityError, LimitExceeded, Rejected
from modelpack.spec.manifest import Descriptor
from modelpack.spec.reference import TAG

_ACCEPT: Final = {"Accept": ", ".join(media.MANIFESTS)}
_TAGS: Final = 1_000_000
_PAGE_SIZE: Final = 1000
_DELETES_NO_TAGS: Final = (400, 405)


class _TagPage(msgspec.Struct):
    tags: list[str] | None = None


def get(exchange: Exchange, target: str) -> tuple[Descriptor, bytes]:
    """Fetch the manifest that a tag or digest names (see Repository.manifest)."""
    expected = _parsed(exchange, target)
    response, _ = exchange.follow("GET", f"manifests/{target}", _ACCEPT)
    what = _what(exchange, target)
    check(response, (200,), what)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
    claimed = response.headers.get("Docker-Content-Digest", "")
    data = body(response, limits.MANIFEST_BYTES, what)
    digest = Digest.of(data, expected.algorithm if expected else "sha256")
    # By tag, what the registry says of itself is all there is to compare with.
    wanted = str(expected) if expected else claimed
    if wanted.startswith(f"{digest.algorithm}:") and wanted != str(digest):
        raise IntegrityError(
            f"manifest {what}", expected=printable(wanted), got=str(digest), source=exchange.name,
            hint="the registry, or something before it, changes manifests",
        )  # fmt: skip
    return Descriptor(printable(media_type), str(digest), len(data)), data


def put(
    exchange: Exchange, data: bytes, media_type: str, tag: str
) -> tuple[Descriptor, str | None]:
    """Store a manifest and see that it is stored; `tag` may be empty.

    Returns what is stored, and the OCI-Subject that the registry has taken note of, if any.
    """
    digest = str(Digest.of(data))
    target = tag or digest
    _parsed(exchange, target)
    response = exchange.send("PUT", f"manifests/{target}", PUSH, {"Content-Type": media_type}, data)
    check(response, (201,), _what(exchange, target))
    body(response, limits.JSON_BODY_BYTES, exchange.name)
    stored = response.headers.get("Docker-Content-Digest", "")
    if not stored.startswith("sha256:"):
        stored = get(exchange, target)[0].digest
    if stored != digest:
        raise IntegrityError(
            f"manifest {target}", expected=digest, got=printable(stored), source=exchange.name,
            hint="the registry stored something else than it was sent",
        )  # fmt: skip
    return Descriptor(media_type, digest, len(data)), response.headers.get("OCI-Subject")


def delete(exchange: Exchange, target: str) -> None:
    """Remove a manifest by digest, or a tag.

    Registries that cannot delete tags (docker-registry answers 400 or 405) are asked to delete what
    the tag names, which takes its other tags with it.
    """
    if _parsed(exchange, target) is None:
        removed = exchange.retry(lambda: _delete(exchange, target, _DELETES_NO_TAGS))
        if removed:
            return
        target = exchange.retry(lambda: get(exchange, target))[0].digest
    if not exchange.retry(lambda: _delete(exchange, target, (405,))):
        raise Denied(
            f"{exchange.name}: the registry does not delete manifests",
            hint="docker-registry wants storage.delete.enabled: true",
        )


def tags(exchange: Exchange) -> list[str]:
    """List all tags, sorted; what cannot be a tag cannot be asked for and is left out."""
    found: set[str] = set()
    for page in pages(exchange, f"tags/list?n={_PAGE_SIZE}", _TagPage):
        found.update(tag for tag in page.tags or () if TAG.fullmatch(tag))
        if len(found) > _TAGS:
            raise LimitExceeded(f"{exchange.name}: more than {_TAGS} tags")
    return sorted(found)


def _delete(exchange: Exchange, target: str, unable: tuple[int, ...]) -> bool:
    """Ask to delete; False if the registry answers with a status that says it does not do this."""
    response = exchange.send("DELETE", f"manifests/{target}", DELETE)
    if response.status not in unable:
        check(response, (200, 202, 204), _what(exchange, target))
    response.close()
    return response.status not in unable


def _parsed(exchange: Exchange, target: str) -> Digest | None:
    """Return the digest, or None for a tag; what is neither must not become part of an address."""
    if ":" in target:
        return Digest.parse(target)
    if not TAG.fullmatch(target):
        raise Rejected(f"{exchange.name}: {printable(target, 140)!r} is not a tag")
    return None


def _what(exchange: Exchange, target: str) -> str:
    return f"{exchange.name}{'@' if ':' in target else ':'}{target}"
