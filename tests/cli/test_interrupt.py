"""Ctrl-C ends a run at once, whatever the engine, and leaves whole rounds behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedleak.captures import CaptureStore
from fedleak.cli import _keep_interrupts

SLOW = """
name = "slow"
data = { kind = "digits" }
model = { kind = "mlp" }
federation = { clients = 2, rounds = 10000 }
"""


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_ctrl_c_ends_a_run_and_keeps_its_rounds(tmp_path: Path, engine: str) -> None:
    (tmp_path / "slow.toml").write_text(SLOW)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from fedleak.cli import main; main()"),
            *("run", "slow.toml", "--out", "run", "--set", f"federation.engine={engine}"),
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    store = CaptureStore(tmp_path / "run")
    deadline = time.monotonic() + 200
    while len(store.rounds()) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(20) == 130
    finally:
        process.kill()
    told = process.communicate()[1].decode()
    assert "Interrupted. Finished rounds and cells are kept." in told
    assert "`fedleak audit RUN`" in told
    for client in store.clients(store.rounds()[-1]):
        store.load(store.rounds()[-1], client)


def test_an_interrupt_that_was_dropped_ends_the_run_after_the_round() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupted = _keep_interrupts()
        interrupted()
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
