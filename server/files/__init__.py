"""Files that may be replaced while the service runs.

Change detection and reload. May import ``settings`` only.
"""
