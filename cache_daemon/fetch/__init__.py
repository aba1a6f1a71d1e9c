"""How models come to the node: resolved, joined, queued, fetched, published."""
