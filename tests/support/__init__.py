"""What the tests share: databases, the service as a process, and clients of every protocol."""
