"""The node cache: one verified copy of a model per node, prefetched, leased, evicted.

Layers, each importing only what is below: `main` > `serve` > `fetch` > `store` > `space` > `api`.
"""
