"""What is on the disk: files, snapshots, leases and pins, correct after a crash at any instant."""
