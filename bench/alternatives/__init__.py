"""What people would use instead of ingestd, each in an environment of its own."""
