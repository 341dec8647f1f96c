"""The peers: servers of the same contract, each written as its own users would write it."""
