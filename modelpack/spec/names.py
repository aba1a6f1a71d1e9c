"""Every name that other people's scripts and manifests depend on, in one place."""

from typing import Final

DOMAIN: Final = "modelpack.dev"
API_GROUP: Final = DOMAIN
CSI_DRIVER: Final = f"csi.{DOMAIN}"
ANNOTATION_PREFIX: Final = "dev.modelpack."

# Annotations of the manifest: what placement and people want to know without downloading weights.
FORMAT: Final = f"{ANNOTATION_PREFIX}format"  # version of docs/design/artifact.md
TOTAL_BYTES: Final = f"{ANNOTATION_PREFIX}bytes"  # payload bytes of all files
FILES: Final = f"{ANNOTATION_PREFIX}files"
TENSOR_BYTES: Final = f"{ANNOTATION_PREFIX}tensor-bytes"  # JSON object: dtype -> bytes
PARAMETERS: Final = f"{ANNOTATION_PREFIX}parameters"
ARCHITECTURE: Final = f"{ANNOTATION_PREFIX}architecture"
HIDDEN_LAYERS: Final = f"{ANNOTATION_PREFIX}hidden-layers"
KV_BYTES_PER_TOKEN: Final = f"{ANNOTATION_PREFIX}kv-bytes-per-token"
CONTEXT_LENGTH: Final = f"{ANNOTATION_PREFIX}context-length"
QUANTIZATION: Final = f"{ANNOTATION_PREFIX}quantization"
COMPRESSION: Final = f"{ANNOTATION_PREFIX}compression"

# Annotation of a layer.
ROLE: Final = f"{ANNOTATION_PREFIX}role"
ROLE_INDEX: Final = "chunk-index"
# In the ModelPack form the index is an artifact of its own that names the model as its subject.
INDEX_ARTIFACT_TYPE: Final = f"application/vnd.{DOMAIN}.chunk-index.v1"

# Inside the artifact, everything under this directory is ours; packing leaves it out.
RESERVED_DIRECTORY: Final = ".modelpack"
INDEX_PATH: Final = f"{RESERVED_DIRECTORY}/index"
IGNORE_FILE: Final = ".modelpackignore"
