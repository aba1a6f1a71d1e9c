"""Chunks of files on this machine: where to cut, what they hash to, what is already known."""
