"""The process: its start, workers, signals and certificates, the parts that it opens, the doctor.

``start`` is ``listings serve``, ``run`` one process of it. ``parts`` opens what the application
stands on, for ``run`` and for ``server.asgi``. May import everything of ``server`` but ``cli`` and
``asgi``.
"""
