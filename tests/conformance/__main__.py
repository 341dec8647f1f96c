"""The command line: ``python -m tests.conformance``, or ``./justw conformance``."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from tests.conformance.generated import generate
from tests.conformance.tools import BUILT, CONNECT, ConformanceError, build, protos

_CONFIG: Final = Path(__file__).resolve().with_name("config.yaml")
_SUITES: Final = ("connect", "h2spec")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--suite", "suites", type=click.Choice(_SUITES), multiple=True, default=_SUITES)
@click.argument("arguments", nargs=-1)
def main(suites: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Run the conformance suites; both by default.

    ARGUMENTS go to connectconformance, as in: --suite connect -- --trace --run '**/unary'
    """
    try:
        BUILT.mkdir(exist_ok=True)
        build()
        generate(protos())
        # Not before: they import what has just been generated.
        from tests.conformance import h2spec, serve

        serve.LOG.unlink(missing_ok=True)
        if "connect" in suites:
            _connect(arguments, serve.COMMAND)
        if "h2spec" in suites:
            h2spec.run()
    except ConformanceError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def _connect(arguments: tuple[str, ...], server: tuple[str, ...]) -> None:
    command = [str(CONNECT), "--mode", "server", "--conf", str(_CONFIG), *arguments, "--", *server]
    if subprocess.run(command, check=False).returncode != 0:
        raise ConformanceError("connectconformance has failed")


if __name__ == "__main__":
    main()
