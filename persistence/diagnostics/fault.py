"""What a check found to be wrong."""

from typing import Final

from persistence.errors import PersistenceError


class Fault(PersistenceError):
    """A check failed. ``str`` is for users: the problem, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem


AS_SUPERUSER: Final = "as a superuser, or by the settings of a managed server"
"""Who may change settings of the server, for remedies."""


class Advice(Fault):
    """The service does what it promises, and something had better be changed."""


def all_of(found: "list[tuple[str, str]]") -> tuple[str, str]:
    """Return several problems, each with its remedy, as one problem and one remedy.

    A remedy of several problems is told once.
    """
    remedies = dict.fromkeys(remedy for _, remedy in found)
    return "; ".join(problem for problem, _ in found), " ".join(remedies)
