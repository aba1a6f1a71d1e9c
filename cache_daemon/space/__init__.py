"""How much may be kept, and what goes first. Pure."""
