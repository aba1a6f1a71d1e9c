"""What this machine remembers between runs; everything here may be deleted at any time."""
