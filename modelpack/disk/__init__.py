"""What this program asks of disks and of the kernel, and what their refusals mean."""
