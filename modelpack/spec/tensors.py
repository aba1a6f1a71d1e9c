"""What a weight file's header says about its tensors."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: where its bytes are in the file, what they mean."""

    name: str
    dtype: str  # upper case, the format's own name: BF16, F8_E4M3, Q4_K
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    end: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """Number of parameters."""
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A parsed header. Tensors are in file order and do not overlap."""

    format: str  # "safetensors" or "gguf"
    data_start: int  # bytes from the start of the file
    tensors: tuple[Tensor, ...]
    metadata: dict[str, object] = field(default_factory=dict)
