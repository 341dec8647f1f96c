"""The interceptors of connectrpc, one idea each. ``server.app`` puts them in order.

May import what ``server.rpc`` may.
"""
