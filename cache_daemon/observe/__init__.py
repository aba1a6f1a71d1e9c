"""What is told of the daemon: words (logs), numbers (counts), and where time went (spans)."""
