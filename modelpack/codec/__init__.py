"""Bytes to stored bytes and back: tar framing and zstd frames."""
