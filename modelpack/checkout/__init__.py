"""An artifact becomes files in a directory: stage, reuse, unpack, place."""
