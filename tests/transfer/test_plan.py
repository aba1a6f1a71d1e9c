from hypothesis import given
from hypothesis import strategies as st

from modelpack.spec.manifest import Descriptor
from modelpack.transfer.piece import Part
from modelpack.transfer.plan import GAP, PIECE_SIZE, SLICE, pieces, side_by_side, slices

BLOB = Descriptor("t", "sha256:" + "1" * 64, 1 << 40)
OTHER = Descriptor("t", "sha256:" + "2" * 64, 1 << 40)


def part(number, offset, length=100):
    return Part(number, b"d", offset, length, 0, offset, length)


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 5 << 20)), max_size=60))
def test_every_part_is_in_exactly_one_piece(spans):
    """Pieces hold all parts in order, cover them, and stay near their size."""
    offset, parts = 0, []
    for gap, length in spans:
        parts.append(part(len(parts), offset + gap, length))
        offset += gap + length
    planned = list(pieces(((0, p) for p in parts), (BLOB,)))
    assert [p for piece in planned for p in piece.parts] == parts
    for piece in planned:
        assert piece.offset == piece.parts[0].stored_offset
        last = piece.parts[-1]
        assert piece.offset + piece.length == last.stored_offset + last.stored_length
        assert piece.length <= PIECE_SIZE or len(piece.parts) == 1


def test_small_gaps_are_read_over_and_large_ones_are_not():
    """Bytes between two small files cost less than another request."""
    near = pieces([(0, part(0, 0)), (0, part(1, 100 + GAP))], (BLOB,))
    far = pieces([(0, part(0, 0)), (0, part(1, 101 + GAP))], (BLOB,))
    assert len(list(near)) == 1
    assert len(list(far)) == 2


def test_layers_are_never_mixed():
    """A piece is one request, so it is of one blob."""
    planned = list(pieces([(0, part(0, 0)), (1, part(1, 100))], (BLOB, OTHER)))
    assert [piece.blob for piece in planned] == [BLOB, OTHER]


def test_blobs_without_ranges_are_one_piece():
    """A source that ignores ranges is asked once, for everything."""
    parts = [(0, part(n, n * (20 << 20))) for n in range(5)]
    planned = list(pieces(parts, (BLOB,), whole=frozenset([BLOB.digest])))
    assert len(planned) == 1
    assert planned[0].whole
    assert len(planned[0].parts) == 5


def test_slices_cover_a_blob():
    """A blob without chunk digests is cut at fixed offsets, numbered from where it was told."""
    blob = Descriptor("t", BLOB.digest, 2 * SLICE + 5)
    found = list(slices(blob, 3, 10))
    assert [p.number for p in found] == [10, 11, 12]
    assert sum(p.length for p in found) == blob.size
    assert all(p.file == 3 and not p.digest for p in found)


def test_pieces_are_taken_from_several_files_in_turn():
    """As many files as asked for are under way; the next one begins when one ends."""
    assert "".join(side_by_side(["ab", "", "cdef", "gh"], 2)) == "abcdgehf"
    assert list(side_by_side([], 3)) == []


def test_files_are_looked_at_when_their_turn_comes():
    """A terabyte's worth of pieces is never in memory at once."""
    begun = []

    def group(name):
        begun.append(name)
        yield from (name, name)

    planned = side_by_side((group(name) for name in range(100)), 3)
    assert [next(planned) for _ in range(3)] == [0, 1, 2]
    assert begun == [0, 1, 2]
