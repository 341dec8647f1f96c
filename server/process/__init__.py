"""The process: start, workers, signals, certificates, and ``listings doctor``.

May import everything of ``server`` but ``cli`` and ``asgi``.
"""
