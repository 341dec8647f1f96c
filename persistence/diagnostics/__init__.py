"""Checks of a database, for ``listings doctor`` and the start of ``listings serve``.

A ``check_…`` returns what it found, or raises Fault or Advice, each with a remedy. A ``require_…``
is the part of a check without which the service does not start, and raises Fault alone.

``fault``, ``connection``   what checks raise, and their connections
``server``                  version, standby, read-only, whether two URLs lead to one database
``rights``, ``public``      privileges of the user, and of every user
``objects``                 tables, indexes, triggers and functions that the service rests on;
                            compared with those that there are by ``object_checks``
``epochs``                  transaction ids of another cluster, and sequences that are behind
``durability``              settings that decide whether a commit survives a crash
``replication``             what a commit waits for
``setting_places``          where a setting is set, and how to take it back there
``connections``             limits of connections
``pooling``                 connection poolers, and prepared statements behind them
``migrations``              migrations that are missing
``status_words``            what depends on the words of payment statuses
"""

from persistence.diagnostics.connection import Connection, connected
from persistence.diagnostics.fault import Advice, Fault

__all__ = ["Advice", "Connection", "Fault", "connected"]
