"""Which paths are meant: patterns in the language of .gitignore."""
