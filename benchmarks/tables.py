"""Generated tables in README.md beside this file, each under the command that makes it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

README = Path(__file__).with_name("README.md")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, table: str) -> None:
    """Put a table and this process' command between the README's markers of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = README.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{README} has no place for a table {name!r}: {begin} and {end}")
    script = Path(sys.argv[0]).name
    command = shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    made = f"{begin}\n```\n{command}\n```\n\n{table}\n{end}"
    between = re.escape(begin) + ".*?" + re.escape(end)
    README.write_text(re.sub(between, lambda _: made, text, flags=re.DOTALL))
