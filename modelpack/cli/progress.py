"""Progress bars with rate and remaining time, on a terminal only."""

import sys
import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bars:
    """A `spec.progress.Reporter` that draws on standard error."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(file=sys.stderr),
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def bar(self, name: str, /) -> "Bar":
        """Return the bar called `name` (see Reporter)."""
        return Bar(self._progress, name)


class Bar:
    """One bar; it is drawn once something is expected."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._total = 0

    def expect(self, bytes_: int, /) -> None:
        """Make the bar longer (see spec.progress.Progress)."""
        with self._lock:
            self._total += bytes_
            if self._task is not None:
                self._progress.update(self._task, total=self._total)
            elif self._total > 0:
                self._task = self._progress.add_task(self._name, total=self._total)

    def advance(self, bytes_: int, /) -> None:
        """Fill the bar (see spec.progress.Progress)."""
        with self._lock:
            if self._task is not None:
                self._progress.advance(self._task, bytes_)
