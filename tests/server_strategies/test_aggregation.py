"""Aggregation rules by name, with Flower's own parameters."""

from __future__ import annotations

from typing import get_args

import pytest
from flwr.serverapp.strategy import FedAdam, FedProx
from pydantic import ValidationError

from server_strategies import Aggregation
from server_strategies.aggregation import AGGREGATIONS, AggregationName, own_parameters


def test_every_name_has_a_strategy():
    assert set(get_args(AggregationName)) == set(AGGREGATIONS)


def test_parameters_reach_the_strategy():
    strategy = Aggregation(kind="fedadam", parameters={"eta": 0.3, "tau": 0.01}).build(
        evaluate=True
    )
    assert isinstance(strategy, FedAdam)
    assert (strategy.eta, strategy.tau, strategy.fraction_evaluate) == (0.3, 0.01, 1.0)


def test_own_parameters_leave_out_what_all_strategies_share():
    assert own_parameters("fedavg") == {}
    assert own_parameters("fedprox") == {"proximal_mu": 0.0}
    assert own_parameters("qfedavg")["client_learning_rate"] is None


def test_an_unknown_parameter_is_told_with_the_known_ones():
    with pytest.raises(ValidationError, match=r"no parameter 'etta'; it has: eta, .*mean 'eta'"):
        Aggregation(kind="fedadam", parameters={"etta": 0.1})


def test_a_required_parameter_is_asked_for():
    with pytest.raises(ValidationError, match="qfedavg needs a value for client_learning_rate"):
        Aggregation(kind="qfedavg")


def test_fedprox_tells_its_clients_the_proximal_weight(grid):
    from flwr.app import ConfigRecord

    from .conftest import arrays

    strategy = Aggregation(kind="fedprox", parameters={"proximal_mu": 0.7}).build(evaluate=False)
    assert isinstance(strategy, FedProx)
    messages = list(strategy.configure_train(1, arrays(w=[1.0]), ConfigRecord(), grid))
    assert messages[0].content["config"]["proximal-mu"] == 0.7
