"""WWW-Authenticate (RFC 9110, section 11.6.1): what a registry wants to know of us."""

import re
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105  # RFC 9110's word for a word
_PARAMETER: Final = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?:,|$)')
_SCHEME: Final = re.compile(rf"({_TOKEN})(?:\s+|\s*,|$)")
_LONGEST: Final = 8192


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: scheme in lower case, parameters by lower-case name."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse(header: str) -> list[Challenge]:
    """Read all challenges; what cannot be read ends the list."""
    found: list[Challenge] = []
    rest = header[:_LONGEST].strip()
    while rest:
        parameter = _PARAMETER.match(rest)
        if parameter and found:
            value = parameter[2] if parameter[2] is not None else parameter[3]
            found[-1].parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", value)
            rest = rest[parameter.end() :].lstrip(" ,\t")
            continue
        scheme = _SCHEME.match(rest)
        if not scheme:
            break
        found.append(Challenge(scheme[1].lower()))
        rest = rest[scheme.end() :].lstrip(" ,\t")
    return found
