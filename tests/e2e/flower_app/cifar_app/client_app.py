"""The ClientApp: trains on its own partition and tests the global model on it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from cifar_app.task import Net, load_data, settings
from cifar_app.task import test as test_fn
from cifar_app.task import train as train_fn

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on local data."""
    config = settings(context.run_config)
    net, loader = _net(message), _loader(context)
    loss = train_fn(net, loader, config["local-epochs"], config["lr"], config["momentum"])
    metrics = {
        "train_loss": loss,
        "num-examples": len(loader.dataset),
        # Names the client in FedLeak's captures; node ids are new in every run.
        "partition-id": context.node_config["partition-id"],
    }
    content = RecordDict(
        {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on local data."""
    net, loader = _net(message), _loader(context)
    loss, accuracy = test_fn(net, loader)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _loader(context: Context) -> DataLoader:
    config = settings(context.run_config)
    partition = context.node_config["partition-id"]
    return load_data(partition, config["samples-per-client"], config["batch-size"])
