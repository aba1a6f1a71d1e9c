"""What is printed: one JSON object for scripts, or a few lines for people."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from modelpack.cli.exits import exit_code
from modelpack.spec.errors import ModelpackError

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say: a result for scripts, lines for people, an exit code."""

    result: object
    lines: Sequence[str]
    code: int = 0


def show(outcome: Outcome, *, as_json: bool) -> None:
    """Print an outcome on standard output."""
    if as_json:
        print_json(outcome.result)
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in outcome.lines))
    sys.stdout.flush()


def print_json(value: object) -> None:
    """Print one JSON object, indented, on standard output."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def show_error(error: ModelpackError, *, as_json: bool) -> None:
    """Print an error: one line, and the next step; for scripts also an object."""
    sys.stderr.write(f"modelpack: {printable(str(error))}\n")
    if error.hint:
        sys.stderr.write(f"  next: {printable(error.hint)}\n")
    if as_json:
        print_json(
            {
                "error": {
                    "kind": type(error).__name__,
                    "message": str(error),
                    "next": error.hint,
                    "exit_code": exit_code(error),
                    "retry": not error.permanent,
                }
            }
        )


def size(bytes_: int) -> str:
    """Return bytes for people, in powers of 1000: 1.2 GB."""
    value = float(bytes_)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1000
    return ""


def seconds(value: float) -> str:
    """Return a duration for people."""
    return f"{value:.1f} s" if value < 60 else f"{value // 60:.0f} min {value % 60:.0f} s"


def printable(text: str) -> str:
    """Escape what would move the cursor or change colours: names come from strangers."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
