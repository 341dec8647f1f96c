"""What the checks of ``listings doctor`` find."""

from dataclasses import dataclass

OK, WARNING, PROBLEM, SKIPPED = "ok", "warning", "problem", "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    verdict: str
    """OK, WARNING, PROBLEM or SKIPPED."""
    subject: str
    text: str
    """What was found, and what to do about a problem or a warning."""
