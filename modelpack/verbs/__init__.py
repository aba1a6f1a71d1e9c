"""What people do with models, one function each; the command line only parses and prints."""
