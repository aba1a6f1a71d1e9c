"""Model weights as reproducible OCI artifacts.

The command line is a thin layer over `modelpack.verbs`; the format is described byte by byte in
docs/design/artifact.md.
"""

from importlib.metadata import version as _version

__version__ = _version("modelpack-oci")
