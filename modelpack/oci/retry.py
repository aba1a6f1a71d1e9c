"""Trying again: what is not permanent, with growing pauses, for a bounded time."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from modelpack.spec.errors import ModelpackError, Unavailable

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses in seconds. `retry_after` of the other side is obeyed up to `longest`."""

    tries: int = 5
    first: float = 0.5
    longest: float = 120
    sleep: Callable[[float], None] = time.sleep

    def run(self, do: Callable[[], Result]) -> Result:
        """Call until it succeeds, fails for good, or has failed `tries` times."""
        for failures in range(1, self.tries):
            try:
                return do()
            except ModelpackError as error:
                if error.permanent:
                    raise
                self.sleep(self.pause(error, failures))
        return do()

    def pause(self, error: ModelpackError, failures: int) -> float:
        """Seconds to wait after the given number of failures in a row."""
        if isinstance(error, Unavailable) and error.retry_after is not None:
            return min(error.retry_after, self.longest)
        growing = min(self.first * 2.0 ** (failures - 1), self.longest)
        # Jitter, so that a crowd that failed together does not come back together.
        return growing * random.uniform(0.5, 1.0)  # noqa: S311
