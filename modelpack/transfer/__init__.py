"""One engine moves verified chunks from sources to files, for the CLI and for the node daemon."""
