"""What callers of the daemon see: values and errors. No I/O."""
