"""A small HTTP server library: HTTP/1.1 and HTTP/2 on one port, with TLS or without.

It builds on uvicorn and zttp, and runs any ASGI application. It imports nothing else of ``server``
and nothing of ``persistence``.
"""
