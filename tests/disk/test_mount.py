import os

import pytest

from modelpack.disk.mount import mount_id
from tests.support.mounts import memory_mount


def test_a_mount_that_comes_after_another_is_another(tmp_path):
    """A journal written on the first must not be believed on the second."""
    found = set()
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        with memory_mount(tmp_path / str(number), "size=1m") as point:
            found.add(mount_id(point))
            assert mount_id(point) == mount_id(point / ".")
            assert mount_id(point) != mount_id(tmp_path)
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 8):
        assert len(found) == 3


def test_what_is_not_there_has_no_mount(tmp_path):
    """It is an error, and not some number."""
    with pytest.raises(FileNotFoundError):
        mount_id(tmp_path / "missing")
