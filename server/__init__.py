"""The service: all code for RPC, HTTP and the process.

Imports go one way: ``cli``, ``asgi`` → ``process`` → ``app`` → ``rpc`` → ``auth``,
``observability`` → ``files`` → ``settings`` → ``persistence``. ``http`` imports none of these.
"""
