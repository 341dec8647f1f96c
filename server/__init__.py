"""The service: everything that knows of RPC, HTTP or the process.

Imports go one way: ``cli``, ``asgi`` → ``process`` → ``app`` → ``rpc`` → ``auth``,
``observability`` → ``persistence``. ``settings`` and ``files`` are below all of them but ``http``,
which imports nothing else of this package.
"""
