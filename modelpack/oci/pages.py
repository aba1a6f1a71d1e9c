"""Lists that come in pages (distribution-spec, "Listing Tags" and "Listing Referrers")."""

from collections.abc import Iterator
from typing import Final, TypeVar

from modelpack.oci.answers import check, json_body
from modelpack.oci.exchange import PULL, Exchange
from modelpack.oci.headers import next_link, printable
from modelpack.spec import limits
from modelpack.spec.errors import LimitExceeded, ProtocolViolation, Rejected

Page = TypeVar("Page")
_PAGES: Final = 1000


def pages(exchange: Exchange, path: str, kind: type[Page], media_type: str = "") -> Iterator[Page]:
    """Yield all pages, each decoded as `kind`.

    The following pages must be on the registry, and there must be an end. Raises what statuses
    other than 200 mean, Rejected where something else than `media_type` (if given) comes,
    LimitExceeded, ProtocolViolation.
    """
    url = exchange.url(path)
    for _ in range(_PAGES):
        page, link = exchange.retry(lambda url=url: _page(exchange, url, kind, media_type))  # type: ignore[misc]
        yield page
        if not link:
            return
        url = exchange.resolve(link, url)
        if not exchange.is_own(url):
            raise ProtocolViolation(f"{exchange.name}: the next page of a list is on another host")
    raise LimitExceeded(f"{exchange.name}: a list of more than {_PAGES} pages")


def _page(exchange: Exchange, url: str, kind: type[Page], media_type: str) -> tuple[Page, str]:
    response = exchange.send("GET", url, PULL, {"Accept": media_type or "application/json"})
    check(response, (200,), exchange.name)
    found = response.headers.get("Content-Type", "").partition(";")[0].strip()
    if media_type and found != media_type:
        response.close()
        raise Rejected(f"{exchange.name}: {printable(found)!r} came instead of {media_type}")
    page = json_body(response, kind, limits.JSON_BODY_BYTES, exchange.name)
    return page, next_link(response.headers.get("Link"))
