"""Weight files: headers are read, weights are not. Headers are hostile input."""
