"""The RPCs: handlers, codecs, errors, interceptors, and the layers between them and HTTP.

May import ``auth``, ``observability``, ``persistence`` and generated code; ``fast_path`` also
``http`` and private parts of connectrpc.
"""
