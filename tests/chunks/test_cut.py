from hypothesis import given
from hypothesis import strategies as st

from modelpack.chunks.cut import CHUNK_SIZE, RUN, SMALL, cut
from modelpack.spec.tensors import Tensor, TensorFile

sizes = st.integers(0, 20_000_000)


def header(start, lengths):
    tensors, at = [], start
    for number, length in enumerate(lengths):
        tensors.append(Tensor(str(number), "U8", (length,), at, at + length))
        at += length
    return TensorFile("safetensors", start, tuple(tensors)), at


def ends(lengths):
    total, found = 0, []
    for length in lengths:
        total += length
        found.append(total)
    return found


@given(sizes)
def test_files_without_tensors_are_cut_at_fixed_offsets(size):
    """All chunks but the last have the full size, and together they are the file."""
    lengths = cut(size)
    assert sum(lengths) == size
    assert all(length == CHUNK_SIZE for length in lengths[:-1])


@given(st.integers(8, 9_000_000), st.lists(sizes, max_size=12), st.integers(0, 100))
def test_chunks_cover_the_file_and_never_mix_large_tensors(start, lengths, trailing):
    """Chunks are never empty, cover everything, and a large tensor begins and ends with a chunk."""
    head, end = header(start, lengths)
    chunks = cut(end + trailing, head)
    assert sum(chunks) == end + trailing
    assert all(0 < length <= CHUNK_SIZE for length in chunks)
    boundaries = {0, *ends(chunks)}
    for tensor in head.tensors:
        if tensor.size >= SMALL:
            assert tensor.start in boundaries


@given(
    st.lists(sizes.filter(bool), min_size=1, max_size=8), st.integers(8, 100), st.integers(1, 5000)
)
def test_a_longer_header_moves_no_boundary_of_a_tensor(lengths, start, growth):
    """Editing metadata changes the chunks of the header and no others."""
    before, end = header(start, lengths)
    after, longer = header(start + growth, lengths)
    assert list(cut(end, before))[1:] == list(cut(longer, after))[1:]


def test_small_tensors_share_chunks_up_to_the_run():
    """Norms and biases are put together, up to 1 MiB."""
    head, end = header(100, [SMALL - 1] * 40)
    chunks = cut(end, head)
    assert chunks[0] == 100
    assert all(length <= RUN for length in chunks[1:])
    assert len(chunks) == 1 + 3  # sixteen of them fit into each run


def test_gaps_belong_to_the_tensor_before():
    """Alignment between tensors of a GGUF is covered too."""
    tensors = (Tensor("a", "F32", (1,), 64, 200_064), Tensor("b", "F32", (1,), 200_096, 400_096))
    chunks = cut(400_128, TensorFile("gguf", 64, tensors))
    assert list(chunks) == [64, 200_032, 200_032]


def test_a_header_without_tensors_is_one_run():
    """A file that holds metadata only is cut like any other."""
    assert list(cut(10, TensorFile("safetensors", 10, ()))) == [10]
