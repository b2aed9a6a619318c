"""The ServerApp: FedAvg, watched by FedLeak."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from cifar_app.task import Net, settings
from fedleak.captures import CaptureStore
from server_strategies import HonestButCurious

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and keep the final model."""
    config = settings(context.run_config)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)

    # The two lines that FedLeak needs. What the server knows of local training because
    # it set it goes into `disclosed`; the number of examples comes with every reply.
    store = CaptureStore("captured")
    strategy = HonestButCurious(
        strategy,
        store,
        disclosed={
            "lr": config["lr"],
            "momentum": config["momentum"],
            "batch_size": config["batch-size"],
            "epochs": config["local-epochs"],
        },
    )

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=config["num-server-rounds"],
    )
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
