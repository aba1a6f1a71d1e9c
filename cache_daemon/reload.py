"""SIGHUP: the settings are read again, and it is said what that changes."""

import logging
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from cache_daemon.config import Settings
from cache_daemon.observe.logs import set_level

_AT_ONCE: Final = ("log_level",)
_log = logging.getLogger("cache_daemon.reload")


class Reload:
    """Compares with what the daemon runs with. Applies what is trivial and safe to apply."""

    def __init__(self, running: Settings, read: Callable[[], Settings]) -> None:
        """`read` reads flags, environment and file again."""
        self._running = running
        self._read = read

    def __call__(self) -> list[str]:
        """Read again; returns the names of settings that need a restart. Never raises.

        A restart is safe at any time: it touches no pod, and fetches continue.
        """
        try:
            found = self._read()
        except ValidationError as error:
            # Not the values: one of them may be a secret.
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            _log.error("settings not read", extra={"error": wrong})
            return []
        except (OSError, ValueError) as error:
            _log.error("settings not read", extra={"error": str(error)})
            return []
        names = [
            name
            for name in Settings.model_fields
            if getattr(found, name) != getattr(self._running, name)
        ]
        applied = [name for name in names if name in _AT_ONCE]
        waiting = [name for name in names if name not in _AT_ONCE]
        if applied:
            set_level(found.log_level)
            self._running = self._running.model_copy(
                update={name: getattr(found, name) for name in applied}
            )
        fields = {"applied": " ".join(applied), "restart_needed": " ".join(waiting)}
        if waiting:
            _log.warning("restart needed", extra=fields)
        else:
            _log.info("settings read again", extra=fields)
        return waiting
