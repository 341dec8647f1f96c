"""Who calls, and what they may do: tokens, their keys, permissions.

May import ``persistence``, ``settings`` and ``files``; nothing of ``rpc`` or ``observability``.
"""
