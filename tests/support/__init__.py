"""Shared by the tests: databases, the service as a process, and clients of every protocol."""

import os
import sys

# grpcio reads it once, when it is imported. With its handlers of fork(), a process that a test
# starts while calls are in flight can crash the test run.
assert "grpc" not in sys.modules
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
