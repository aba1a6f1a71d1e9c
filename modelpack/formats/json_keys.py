"""Duplicate keys in JSON: two readers may disagree about which one counts, so none is accepted."""

import json
from json import JSONDecodeError


class _DuplicateError(Exception):
    pass


def first_duplicate(text: bytes) -> str | None:
    """Return a key that an object of the document has twice, or None.

    Text that is not JSON has none: the caller's own decoder says what is wrong with it.
    """
    try:
        json.loads(text, object_pairs_hook=_check, parse_int=str, parse_float=str)
    except _DuplicateError as found:
        return str(found)
    except (JSONDecodeError, RecursionError, UnicodeDecodeError):
        return None
    return None


def _check(pairs: list[tuple[str, object]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateError(key)
            seen.add(key)
