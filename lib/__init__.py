"""The ground that the chapters stand on: it imports nothing above it."""
