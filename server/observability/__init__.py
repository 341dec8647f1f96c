"""What operators see: logs, metrics, traces.

May import ``persistence`` and ``settings``; nothing of ``rpc`` or ``auth``.
"""
