"""Files that may be replaced while the service runs. May import ``settings`` only."""
