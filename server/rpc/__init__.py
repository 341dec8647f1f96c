"""The RPCs: handlers, codecs, error mapping, and what stands between them and HTTP.

May import ``auth``, ``observability``, ``persistence`` and generated code; ``fast_path`` and
``load_shedding`` also ``http``.
"""
