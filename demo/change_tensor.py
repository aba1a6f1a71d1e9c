"""Change every weight of one tensor a little, as a fine-tune does; prints its name."""

import struct
import sys
from pathlib import Path

from modelpack.formats.detect import read_header

path = next(Path(sys.argv[1]).rglob("*.safetensors"))
with path.open("r+b") as file:
    header = read_header(file, path.stat().st_size, path.name)
    assert header is not None
    tensor = next(t for t in header.tensors if t.name.endswith("layer.5.output.dense.weight"))
    file.seek(tensor.start)
    values = struct.unpack(f"<{tensor.elements}f", file.read(tensor.size))
    file.seek(tensor.start)
    file.write(struct.pack(f"<{tensor.elements}f", *(value * 1.001 for value in values)))
print(f"{tensor.name} ({tensor.size:,} of {path.stat().st_size:,} bytes)")
