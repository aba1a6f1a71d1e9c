"""What is printed: one JSON object for scripts, or a few lines for people."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from modelpack.cli.exits import exit_code
from modelpack.spec.errors import DiskError, ModelpackError

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has to say: a result for scripts, lines for people, an exit code."""

    result: object
    lines: Sequence[str]
    code: int = 0


def show(outcome: Outcome, *, as_json: bool) -> None:
    """Print an outcome on standard output."""
    try:
        if as_json:
            print_json(outcome.result)
        else:
            sys.stdout.write("".join(f"{printable(line)}\n" for line in outcome.lines))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DiskError(f"standard output: {error.strerror}") from error


def print_json(value: object) -> None:
    """Print one JSON object, indented, on standard output."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def show_error(error: ModelpackError, *, as_json: bool) -> None:
    """Print an error: one line, and the next step; for scripts also an object."""
    report(
        type(error).__name__, str(error), error.hint, exit_code(error),
        as_json=as_json, retry=not error.permanent,
    )  # fmt: skip


def report(  # noqa: PLR0913  # an error has that many sides
    kind: str, message: str, following: str, code: int, *, as_json: bool, retry: bool = False
) -> None:
    """Say what went wrong on standard error, and as an object on standard output."""
    message, following = printable(message), printable(following)
    sys.stderr.write(f"modelpack: {message}\n" + (f"  next: {following}\n" if following else ""))
    if as_json:
        print_json(
            {
                "error": {
                    "kind": kind,
                    "message": message,
                    "next": following,
                    "exit_code": code,
                    "retry": retry,
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


def cloned(bytes_: int) -> str:
    """Return how much of what was just named takes no space of its own, if anything."""
    return f" (of which {size(bytes_)} shared on disk)" if bytes_ else ""


def count(number: int, noun: str) -> str:
    """Return how many, in words: 1 file, 12 files."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def seconds(value: float) -> str:
    """Return a duration for people."""
    return f"{value:.1f} s" if value < 60 else f"{value // 60:.0f} min {value % 60:.0f} s"


def printable(text: str) -> str:
    """Escape what would move the cursor, change colours or forge a line: names are strangers'."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
