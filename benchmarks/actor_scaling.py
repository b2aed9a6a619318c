"""How much faster two Ray actors finish an audit than one.

    python benchmarks/actor_scaling.py

Forty cells, one thread each, on copies of the same captures. Starting Ray and importing
torch in the actors is left out: the clock runs from the moment each actor has finished
its first cell.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from tables import markdown, write

from fedleak import audit, load_scenario, run
from fedleak.scenario import Audit


def seconds_per_cell(captures: Path, place: Path, actors: int) -> float:
    """Audit a copy of the captures; seconds per cell once every actor is warm."""
    copy = place / f"actors-{actors}"
    shutil.copytree(captures, copy)
    stamps: list[float] = []
    audit(
        copy,
        settings=Audit(executor="ray", actors=actors),
        on_cell=lambda _: stamps.append(time.perf_counter()),
    )
    return (stamps[-1] - stamps[actors - 1]) / (len(stamps) - actors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40, help="cells to audit (default 40)")
    parser.add_argument("--iterations", type=int, default=300, help="GS iterations a cell")
    parser.add_argument("--write", metavar="TABLE", help="put it into README.md as well")
    options = parser.parse_args()
    scenario = load_scenario(
        {
            "data": {"kind": "mnist-5k"},
            "model": {"kind": "lenet-dlg"},
            "federation": {"clients": options.cells},
            "audit": {"attacks": [{"kind": "gs", "iterations": options.iterations, "restarts": 4}]},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        captures = run(scenario, directory=place / "captures")
        one, two = (seconds_per_cell(captures, place, actors) for actors in (1, 2))
    head = ["cells", "one actor, s a cell", "two actors, s a cell", "as fast", "bar"]
    row = [str(options.cells), f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}x", "1.8x"]
    table = markdown(head, [row])
    print(table)
    if options.write:
        write(options.write, table)


if __name__ == "__main__":
    main()
