"""All code for SQL.

What a payment is, without SQL:

``payment_states``, ``decision``      states, and the rules: which event an order takes
``status_words``                      what the words of a payment's status mean
``status_words_file``, ``toml_lines`` reading the words, with the lines of mistakes
``order_payments``                    the attempts to pay an order, made of its events; with
                                      ``attempt_walk``, ``payment_steps``, ``disjoint_sets``

Reading and writing:

``models``, ``errors``                rows as values; exceptions
``orders``                            the repository
``payment_updates``, ``batcher``      updates, and why one has written nothing; shared commits
``idempotency_keys``                  what the keys of updates were used for
``refused_events``                    the record of what was refused; read by ``refused_event_log``
``history``, ``positions``, ``watch`` events of payments, and streams of them

SQL, by PyPika:

``update_statement``                  the UPDATE of a payment; its terms: ``update_terms``
``queries``, ``list_queries``         reads and lists
``find_order``                        the order that a payment belongs to
``dialect``, ``payment_terms``        terms that PyPika lacks, and terms about payments

The database:

``database``, ``error_mapping``       the connection pool; errors of asyncpg by SQLSTATE
``time_limit``                        how long a statement, or a call, may take
``dsn``, ``session_names``            URLs; what sessions show in pg_stat_activity
``health_probe``                      whether the database answers
``state_log``                         log entries of what begins and ends
``migrations``, ``schema``, ``roles`` migrations, what they add up to, rights
``migration_support``                 what released migrations import
``yoyo_backend``                      how yoyo connects, and locks
``embedded``                          a PostgreSQL that runs while the program does

Work of operators, as the owner of the tables:

``diagnostics``                       checks of the doctor, and of the start
``reclassification``                  states anew, after the words have changed
``refused_purge``                     deletes old refused events
``new_history``                       a new epoch of the history, for one of another cluster
``maintenance``                       sessions of these commands
``seeding``, ``demo_payments``        demo orders, and the lives of their payments

Imports neither ``server`` nor generated code nor connectrpc.
"""
