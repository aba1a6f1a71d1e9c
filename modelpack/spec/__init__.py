"""The shared vocabulary: values and protocols, no I/O, no third-party adapters.

Glossary, used identically in code, command line and documents:

artifact     what a tag or digest points at: one OCI manifest, its config and its layers
layer        one blob of the artifact: an uncompressed tar of one weight file, or of small files
payload      the bytes of one file inside a layer
chunk        the unit of identity and verification: a run of payload bytes with its own digest
chunk index  the table files -> chunks that travels inside the artifact
piece        the unit of transfer: adjacent chunks asked for in one request
source       something that can serve pieces: registry, OCI layout, S3
"""
