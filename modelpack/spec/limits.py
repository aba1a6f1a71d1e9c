"""Upper bounds on everything that comes from outside.

Each is far above any honest model and far below what would hurt this machine.
"""

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

MANIFEST_BYTES: Final = 4 * MIB  # what registries accept; distribution answers 400 above it
CONFIG_BYTES: Final = 4 * MIB
BLOB_BYTES: Final = 1 << 44  # 16 TiB, the largest file of ext4
ARTIFACT_BYTES: Final = 1 << 46  # all layers together
INDEX_BYTES: Final = 256 * MIB  # 27 TB of weights in 4 MiB chunks
JSON_BODY_BYTES: Final = 8 * MIB  # tags, referrers, tokens, errors
HEADER_BYTES: Final = 100_000_000  # the safetensors library's own limit
FILES: Final = 100_000
MANIFESTS: Final = 1_000  # in an index
LAYERS_READ: Final = 2_000
PATH_BYTES: Final = 4_096
PATH_DEPTH: Final = 64
NAME_BYTES: Final = 255  # one component, ext4 and xfs
CHUNK_BYTES: Final = 16 * MIB  # largest chunk an index may name; each worker may hold two
# A compressed foreign layer may grow by this factor plus a floor; weights never come close.
EXPANSION_FACTOR: Final = 200
EXPANSION_FLOOR: Final = 64 * MIB
