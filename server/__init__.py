"""Everything that knows of RPC, HTTP or the process."""
