"""All code for SQL.

=====================================  ==================================================
``models``                             rows as values
``queries``, ``dialect``               the SQL, by PyPika
``orders``, ``unwritten_update``       the repository; why an update has written nothing
``statuses``                           which payment status may follow which
``batcher``                            updates that share a round trip and a commit
``history``, ``positions``, ``watch``  events of payments, and streams of them
``database``, ``error_mapping``        the connection pool; errors of asyncpg by SQLSTATE
``health_probe``, ``diagnostics``      whether the database answers; checks of the doctor
``migrations``, ``schema``, ``roles``  migrations, what they add up to, rights
``migration_support``                  what released migrations import
``embedded``                           a PostgreSQL that runs while the program does
=====================================  ==================================================

Imports neither ``server`` nor generated code nor connectrpc.
"""
