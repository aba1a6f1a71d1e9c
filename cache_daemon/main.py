"""The process: settings, the daemon, and an end that loses nothing."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError
from pydantic_settings import CliApp

from cache_daemon.build import build, open_traces
from cache_daemon.config import Settings
from cache_daemon.observe import logs
from cache_daemon.observe.systemd import notify
from cache_daemon.reload import Reload
from cache_daemon.serve.servers import Server
from modelpack.disk.heap import keep_freed_memory
from modelpack.spec.errors import ModelpackError

_log = logging.getLogger("cache_daemon")


def main() -> None:
    """Run the daemon until SIGTERM.

    Exit codes: 0, 1 where the store or a socket cannot be used, 2 for settings that make no sense.
    """
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        for one in error.errors():
            where = ".".join(str(part) for part in one["loc"])
            sys.stderr.write(f"modelpack-cache-daemon: {where}: {one['msg']}\n")
        sys.exit(2)
    if settings.print_config:
        sys.stdout.write(settings.model_dump_json(indent=2, exclude={"print_config"}) + "\n")
        return
    logs.set_up(settings.log_format, settings.log_level)
    keep_freed_memory()
    try:
        close_traces = open_traces(settings.otlp_endpoint)
        daemon = build(settings)
    except (ModelpackError, OSError, ValueError) as error:
        hint = getattr(error, "hint", "")
        sys.stderr.write(f"modelpack-cache-daemon: {error}\n")
        sys.stderr.write(f"  next: {hint}\n" if hint else "")
        sys.exit(1)
    doors = {"socket": settings.socket, "listen": settings.listen, "mirror": settings.mirror}
    _log.info("serving", extra={name: str(where) for name, where in doors.items() if where})
    daemon.start()
    try:
        asyncio.run(_serve(daemon.servers, Reload(settings, lambda: CliApp.run(Settings))))
    finally:
        notify("STOPPING=1")
        settings.socket.unlink(missing_ok=True)
        daemon.close()
        close_traces()


async def _serve(servers: Sequence[Server], reload: Callable[[], object]) -> None:
    servers[-1].on_started = lambda: notify("READY=1")
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)

    def stop() -> None:
        for server in servers:
            server.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await asyncio.gather(*(server.run_here() for server in servers))


if __name__ == "__main__":
    main()
