"""How much of a file is in the page cache: mincore(2) over a mapping."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_WINDOW: Final = 1 << 30  # a byte per page is asked for: 256 KiB at a time


def resident(path: Path) -> int:
    """Return the bytes of a file that are in the page cache, in whole pages, at most its size.

    0 where the kernel does not tell. Raises OSError for a file that cannot be opened.
    """
    found = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, _WINDOW):
            length = min(_WINDOW, size - offset)
            # A private mapping has an address that ctypes may take; nothing is ever written to it.
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset) as mapped:
                found += _pages(mapped, length) * mmap.PAGESIZE
    return min(found, size)


def _pages(mapped: mmap.mmap, length: int) -> int:
    count = -(-length // mmap.PAGESIZE)
    answers = (ctypes.c_ubyte * count)()
    start = ctypes.c_ubyte.from_buffer(mapped)
    address = ctypes.c_void_p(ctypes.addressof(start))
    failed = _LIBC.mincore(address, ctypes.c_size_t(length), answers)
    del start  # or the mapping cannot be closed
    return 0 if failed else bytes(answers).translate(_LOW_BIT).count(1)


_LOW_BIT: Final = bytes(value & 1 for value in range(256))
