"""What the benchmark rows share."""
