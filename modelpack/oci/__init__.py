"""Registries: the distribution protocol, its authentication, and layouts on disk."""
