"""Files that USTAR cannot describe."""

import pytest

from modelpack.spec.reference import Reference
from modelpack.verbs.pull import PullOptions, pull
from modelpack.verbs.push import PushOptions, push


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_of_more_than_8_gib(tmp_path, session):
    """Its size goes into a PAX record; it comes back with every byte where it was."""
    source = tmp_path / "m"
    source.mkdir()
    size = (8 << 30) + 12_345
    marks = {0: b"first", 3_000_000_001: b"middle", size - 4: b"last"}
    with (source / "huge.bin").open("wb") as file:
        file.truncate(size)
        for at, data in marks.items():
            file.seek(at)
            file.write(data)
    reference = Reference.parse(f"oci:{tmp_path / 'layout'}:v1")
    push(str(source), reference, session(), PushOptions())
    done = pull(reference, tmp_path / "out", session(), PullOptions())
    assert done.bytes_total == size
    # Two thousand chunks of zeros are one: it is fetched once.
    assert done.bytes_moved < 20 << 20
    with (tmp_path / "out" / "huge.bin").open("rb") as file:
        for at, data in marks.items():
            file.seek(at)
            assert file.read(len(data)) == data
            assert not any(file.read(1000))
        assert file.seek(0, 2) == size
