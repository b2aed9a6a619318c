"""Combinations of settings that each are valid and together are impossible."""

from __future__ import annotations

from collections import Counter

from fedleak.errors import Problem
from fedleak.scenario.schema import Scenario


def combinations(scenario: Scenario) -> list[Problem]:
    """Every impossible combination; needs neither data nor a model to be loaded."""
    federation, client, audit = scenario.federation, scenario.client, scenario.audit
    problems: list[Problem] = []
    if federation.asked > federation.clients:
        problems.append(
            Problem(
                "federation.clients_per_round",
                f"{federation.asked} clients are asked each round, but federation.clients "
                f"is {federation.clients}",
            )
        )
    if client.local_steps and client.local_epochs:
        problems.append(Problem("client.local_steps", "give local_steps or local_epochs, not both"))
    for number in audit.rounds or ():
        if not 1 <= number <= federation.rounds:
            problems.append(
                Problem(
                    "audit.rounds",
                    f"there is no round {number}; federation.rounds is {federation.rounds}",
                )
            )
    for partition in audit.clients or ():
        if not 0 <= partition < federation.clients:
            problems.append(
                Problem(
                    "audit.clients",
                    f"there is no client {partition}; partition ids go from 0 to "
                    f"{federation.clients - 1}",
                )
            )
    kinds = [attack.kind for attack in audit.attacks]
    for kind, count in Counter(kinds).items():
        if count > 1:
            problems.append(
                Problem("audit.attacks", f"{kind!r} stands there {count} times; once is enough")
            )
    for index, expectation in enumerate(scenario.expect):
        if expectation.attack is not None and expectation.attack not in kinds:
            listed = ", ".join(kinds) or "none"
            problems.append(
                Problem(
                    f"expect.{index}.attack",
                    f"{expectation.attack!r} is not among audit.attacks ({listed})",
                )
            )
        if not kinds:
            problems.append(Problem(f"expect.{index}", "nothing is scored: audit.attacks is empty"))
    return problems
