"""Combinations of settings that each are valid and together are impossible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from clients.defenses import DpSgd
from fedleak.errors import Problem
from fedleak.measures import EmpiricalEpsilon
from fedleak.scenario.expectations import (
    IN_STUDIES,
    MEASURED,
    SCORED,
    Expectation,
    needs_audit,
)
from fedleak.scenario.naming import names_of
from fedleak.scenario.schema import Audit, Scenario
from server_strategies import TrapWeightsParty

RestsOn = tuple[str, ...]


def combinations(scenario: Scenario) -> Iterator[tuple[Problem, RestsOn]]:
    """Every impossible combination, with the key paths of the values it is made of.

    Needs neither data nor a model to be loaded.
    """
    federation, client, audit = scenario.federation, scenario.client, scenario.audit
    if federation.asked > federation.clients:
        path = "federation.clients_per_round"
        message = (
            f"{federation.asked} clients are asked each round, but federation.clients "
            f"is {federation.clients}"
        )
        yield Problem(path, message), (path, "federation.clients")
    if (group := scenario.aggregation.secure_aggregation) is not None:
        path = "aggregation.secure_aggregation"
        if group > federation.asked:
            message = f"groups of {group} clients, but {federation.asked} are asked each round"
            asked = ("federation.clients_per_round", "federation.clients")
            yield Problem(path, message), (path, *asked)
        if federation.engine == "deployment":
            message = "is simulated; the server of a deployment would see each client's update"
            yield Problem(path, message), (path, "federation.engine")
        if isinstance(scenario.server, TrapWeightsParty) and scenario.server.tuning == "updates":
            message = "'updates' needs each client's update, secure_aggregation gives sums only"
            yield Problem("server.tuning", message), (path, "server")
    if client.local_steps and client.local_epochs:
        message = "give local_steps or local_epochs, not both"
        path = "client.local_steps"
        yield Problem(path, message), (path, "client.local_epochs")
    for number in audit.rounds or ():
        if not 1 <= number <= federation.rounds:
            message = f"there is no round {number}; federation.rounds is {federation.rounds}"
            yield Problem("audit.rounds", message), ("audit.rounds", "federation.rounds")
    for partition in audit.clients or ():
        if not 0 <= partition < federation.clients:
            message = (
                f"there is no client {partition}; partition ids go from 0 to "
                f"{federation.clients - 1}"
            )
            yield Problem("audit.clients", message), ("audit.clients", "federation.clients")
    alone = Counter(defense.kind for defense in client.defenses if not defense.repeatable)
    for kind, count in alone.items():
        if count > 1:
            message = f"{kind!r} stands there {count} times; it may only once"
            yield Problem("client.defenses", message), ("client.defenses",)
    masked = [defense.kind for defense in client.defenses if defense.draws_masks]
    for defense in client.defenses:
        if masked and defense.passes_again:
            message = (
                f"{defense.kind!r} runs the model again in each step, where {masked[0]!r} draws "
                "other masks: use one of them"
            )
            yield Problem("client.defenses", message), ("client.defenses",)
    making = [defense.kind for defense in client.defenses if defense.makes_gradients]
    if len(set(making)) > 1:
        message = (
            f"{' and '.join(making)} each make gradients from the samples, so one would undo what "
            "the other does; keep one of them"
        )
        yield Problem("client.defenses", message), ("client.defenses",)
    for name, count in Counter(names_of(audit.attacks)).items():
        if count > 1:
            message = (
                f"{name!r} stands there {count} times with the same parameters; once is enough"
            )
            yield Problem("audit.attacks", message), ("audit.attacks",)
    if scenario.aggregation.secure_aggregation is not None:
        for measure in audit.measures:
            if "release" in measure.needs:
                message = (
                    f"{measure.kind!r} looks at what one client would release, and the central "
                    "party sees sums of several: leave out aggregation.secure_aggregation"
                )
                path = "audit.measures"
                yield Problem(path, message), (path, "aggregation.secure_aggregation")
    private = [d for d in client.defenses if isinstance(d, DpSgd) and d.noise_multiplier != 0]
    if any(isinstance(measure, EmpiricalEpsilon) for measure in audit.measures) and not private:
        message = (
            "'empirical-epsilon' audits what dp-sgd claims of its steps, and no client claims that "
            "here: add dp-sgd with noise to client.defenses"
        )
        yield Problem("audit.measures", message), ("audit.measures", "client.defenses")
    for index, measure in enumerate(audit.measures):
        if measure in audit.measures[:index]:
            message = (
                f"{measure.kind!r} stands there twice with the same parameters; once is enough"
            )
            yield Problem(f"audit.measures.{index}", message), ("audit.measures",)
    for index, expectation in enumerate(scenario.expect):
        path = f"expect.{index}"
        for name in sorted(IN_STUDIES):
            if getattr(expectation, name):
                message = "only a study has cells to choose from; this scenario has no matrix"
                yield Problem(f"{path}.{name}", message), (path,)
        if expectation.metric not in (*SCORED, *MEASURED):
            message = (
                f"{expectation.metric!r} is compared in studies only: give the scenario a [matrix] "
                "or repeats"
            )
            yield Problem(f"{path}.metric", message), (path,)
        if (absent := no_such_round(expectation, scenario)) is not None:
            yield Problem(f"{path}.round", absent), (path, "federation.rounds", "audit.rounds")
        if (unscored := not_audited(expectation, audit)) is not None:
            name, message = unscored
            rests_on = ("audit.measures" if expectation.metric in MEASURED else "audit.attacks",)
            yield Problem(".".join(filter(None, (path, name))), message), (path, *rests_on)


def not_audited(expectation: Expectation, audit: Audit) -> tuple[str, str] | None:
    """Why an audit gives no such score or value: the field at fault, ``""`` for none, and why."""
    if expectation.metric in MEASURED:
        if not any(expectation.metric in measure.metrics for measure in audit.measures):
            return "metric", "nothing measures it: it needs its measure in audit.measures"
        if expectation.attack is not None and expectation.against is None:
            return "attack", f"{expectation.metric!r} is measured, and no attack's; leave it out"
        return None
    if expectation.layer is not None:
        return "layer", f"{expectation.metric!r} is of whole reconstructions and has no layers"
    names = names_of(audit.attacks)
    if not names:
        return "", "nothing is scored: audit.attacks is empty"
    if expectation.attack is not None and expectation.attack not in names:
        listed = ", ".join(names)
        return "attack", f"{expectation.attack!r} is not among audit.attacks ({listed})"
    return None


def no_such_round(expectation: Expectation, scenario: Scenario) -> str | None:
    """Why there are no values of the round that an expectation names, if there are none."""
    number, audited = expectation.round, scenario.audit.rounds
    if number is None:
        return None
    if number > scenario.federation.rounds:
        return f"there is no round {number}; federation.rounds is {scenario.federation.rounds}"
    if needs_audit(expectation.metric) and audited is not None and number not in audited:
        return f"round {number} is not among audit.rounds ({', '.join(map(str, audited))})"
    return None
