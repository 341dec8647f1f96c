"""``listings doctor``, run as a process, and its report."""

from urllib.parse import urlsplit

from tests.support import postgres
from tests.support.command_line import listings

Report = dict[str, tuple[str, str]]
"""The verdict and the text for each subject."""


def examined(url: str = "", *, healthy: bool = False, **settings: str) -> Report:
    """Run the doctor, check its exit code against its report, and return the report.

    The shared server forgoes durability, as ``postgres`` says: that is left out.
    """
    done = listings("doctor", url=url, settings=settings)
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    report: Report = {}
    for line in done.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        subject, _, text = rest.strip().partition(": ")
        report[subject] = (verdict, f"{report[subject][1]}\n{text}" if subject in report else text)
    problems = [subject for subject, (verdict, _) in report.items() if verdict == "problem"]
    assert done.returncode == (1 if problems else 0), done.stdout + done.stderr
    if _is_shared(url) and report.get("durability", ("", ""))[1].startswith("fsync is off"):
        problems.remove("durability")
        del report["durability"]
    assert not (healthy and problems), report
    return report


def _is_shared(url: str) -> bool:
    return urlsplit(url).path.startswith(f"/{postgres.template().name}_")


def problem(report: Report, subject: str) -> str:
    """Return the text of the only subject that is a problem."""
    others = {each: verdict for each, (verdict, _) in report.items() if each != subject}
    assert "problem" not in others.values(), report
    verdict, text = report[subject]
    assert verdict == "problem", report
    return text
