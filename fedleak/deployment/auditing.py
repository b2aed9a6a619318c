"""The auditor beside a federation: a process that audits each round as it is committed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedleak.deployment.flower import flower
from fedleak.scenario import Scenario


@contextmanager
def audited_while_running(scenario: Scenario, directory: Path) -> Iterator[None]:
    """Follow a run directory for as long as this lasts, then wait for the last round.

    What the auditor prints comes at the end, in one piece: until then the federation's
    log goes there.

    Args:
        scenario: What is run; without attacks there is nothing to do.
        directory: Its run directory; need not be there yet.

    Raises:
        SystemExit: The auditor's exit code, where it is not 0.
    """
    if not scenario.audit.tasks:
        yield
        return
    command = [flower("fedleak"), "audit", str(directory), "--follow"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as auditor:
        try:
            yield
        except BaseException:
            auditor.terminate()
            raise
        out, errors = auditor.communicate()
    print(out, end="")
    if auditor.returncode:
        print(errors, end="", file=sys.stderr)
        sys.exit(auditor.returncode)
