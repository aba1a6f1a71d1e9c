"""A model directory becomes an artifact: walk, cut, lay out, digest, build."""
