"""The registry mirror: what container runtimes pull through this node."""
