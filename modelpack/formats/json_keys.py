"""Keys of a JSON document, found without building it.

Two readers may disagree about which of two equal keys counts, so a header that has them is refused.
Decoders drop the first one silently. A document of known structure has as many keys in its text as
in its decoded values, or it has one twice: counting finds that in flat memory, where building the
document to look for it costs gigabytes when the document is hostile.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

# A string, the colon that makes it a key, and the brace that makes it the name of an object. Every
# string is matched, so that the inside of one is never taken for the start of another; possessive
# throughout, so that no text makes it slow.
_STRING: Final = re.compile(
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"(\s*+:\s*+(\{)?+)?+', re.DOTALL | re.ASCII
)


def count_keys(text: bytes) -> int:
    """Return how many keys all objects of a valid document have together, repeated ones too."""
    return sum(1 for _ in _keys(text))


def repeated_object(text: bytes) -> str | None:
    """Return a key that names an object for the second time at any depth, or None."""
    seen: set[str] = set()
    for found in _keys(text):
        if found[3] is not None:
            # Decoded, because "a" and "\u0061" are the same key.
            key = msgspec.json.decode(b'"%b"' % found[1], type=str)
            if key in seen:
                return key
            seen.add(key)
    return None


def _keys(text: bytes) -> Iterator[re.Match[bytes]]:
    return (found for found in _STRING.finditer(text) if found[2] is not None)
