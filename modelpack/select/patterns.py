"""--include, --exclude and .modelpackignore, in the patterns of .gitignore."""

import re
from collections.abc import Sequence
from typing import Final

import pathspec

from modelpack.spec.errors import InputError
from modelpack.spec.names import IGNORE_FILE, RESERVED_DIRECTORY

# Never packed: our own traces, version control, the bookkeeping of the Hugging Face client.
BUILT_IN: Final = (
    f"/{RESERVED_DIRECTORY}/",
    f"/{IGNORE_FILE}",
    ".git/",
    "/.cache/huggingface/",
    ".DS_Store",
)


class Selection:
    """Decides by path. A directory that is excluded as a whole need not be entered."""

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        """Compile the patterns; raises InputError naming one that is not a pattern."""
        self._include = _compile(include) if include else None
        self._exclude = _compile((*ignore, *exclude))

    def takes(self, path: str) -> bool:
        """Whether the file at `path` is selected."""
        if self._include is not None and not self._include.match_file(path):
            return False
        return not self._exclude.match_file(path)

    def enters(self, directory: str) -> bool:
        """Whether anything below `directory` may be selected."""
        return not self._exclude.match_file(f"{directory}/")


def _compile(patterns: Sequence[str]) -> pathspec.GitIgnoreSpec:
    try:
        return pathspec.GitIgnoreSpec.from_lines(patterns)
    except (ValueError, re.error) as error:
        raise InputError(
            f"not a pattern: {error}", hint="patterns are those of .gitignore"
        ) from None
