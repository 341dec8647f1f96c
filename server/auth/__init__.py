"""Authentication and authorization: tokens, the keys that verify them, permissions.

May import ``persistence``, ``settings`` and ``files``; nothing of ``rpc`` or ``observability``.
"""
