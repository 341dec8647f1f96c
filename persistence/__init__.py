"""Everything that knows of SQL: records, queries, the repository, the pool, migrations."""
