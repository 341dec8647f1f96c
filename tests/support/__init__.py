"""Shared by the tests: databases, the service as a process, and clients of every protocol."""
