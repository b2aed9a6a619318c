"""Messages as a federation would produce them, with hand-made arrays."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.run import Run

from fedleak.federation.inline import InlineGrid, identify_server
from fedleak.versions import versions


def arrays(**named) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in named.items()})


@pytest.fixture
def grid():
    """Three nodes whose app adds its partition id plus one to every array it gets."""
    run = Run.create_empty(run_id=1)
    identify_server(run)

    def app(message: Message, context) -> Message:
        partition = context.node_config["partition-id"]
        if message.metadata.message_type == "query":
            identity = ConfigRecord({"partition-id": partition, **versions()})
            return Message(RecordDict({"fedleak": identity}), reply_to=message)
        received = next(iter(message.content.array_records.values()))
        trained = {
            name: array.numpy() + np.asarray(partition + 1, dtype=array.numpy().dtype)
            for name, array in received.items()
        }
        metrics = MetricRecord(
            {"num-examples": 10 * (partition + 1), "train_loss": 0.5 + partition}
        )
        content = RecordDict(
            {
                "arrays": arrays(**trained),
                "metrics": metrics,
                "fedleak": ConfigRecord(
                    {"partition-id": partition, "lr": 0.5, "steps": 1, "batch-size": 2}
                ),
            }
        )
        return Message(content, reply_to=message)

    return InlineGrid(app, 3, run)
