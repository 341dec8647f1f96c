"""Everything that knows of SQL: models, queries, repository, connection pool, migrations.

Imports neither ``server`` nor generated code nor connectrpc.
"""
