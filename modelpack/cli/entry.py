"""Where the program starts: signals first, everything that takes time to import afterwards."""

import json
import os
import signal
import sys
from typing import Never

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM arrived; everything is left as after Ctrl-C."""


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    try:
        signal.signal(signal.SIGTERM, _terminate)
        _prepare_streams()
        from modelpack.cli.main import run

        code = run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = stopped(_INTERRUPTED, arguments)
    except Terminated:
        code = stopped(_TERMINATED, arguments)
    except OSError:
        code = 8  # standard output cannot take what was left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def stopped(code: int, arguments: list[str]) -> int:
    """Say that a signal ended the work, and how it goes on; returns the code."""
    how = "terminated" if code == _TERMINATED else "interrupted"
    following = "run the same command again: it continues"
    sys.stderr.write(f"modelpack: {how}\n  next: {following}\n")
    if "--json" in arguments:
        error = {"kind": how.capitalize(), "message": how, "next": following,
                 "exit_code": code, "retry": True}  # fmt: skip
        sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")
    return code


def _prepare_streams() -> None:
    """Make standard streams that take everything, whatever the locale and whoever closed them."""
    if sys.flags.utf8_mode == 0 and sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        # File names are UTF-8 to us in any locale; only a fresh interpreter can change its mind.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `modelpack ... >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        else:
            stream.reconfigure(errors="backslashreplace")


def _terminate(_signal: int, _frame: object) -> Never:
    raise Terminated


if __name__ == "__main__":
    main()
