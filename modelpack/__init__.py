"""Model weights as reproducible OCI artifacts.

The command line is a thin layer over `modelpack.verbs`; the format is described byte by byte in
docs/design/artifact.md.
"""


def __getattr__(name: str) -> str:
    # Reading package metadata takes longer than anything else at start; few ask for the version.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("modelpack-oci")
