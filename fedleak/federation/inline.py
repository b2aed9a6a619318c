"""The inline engine: both apps in this process, one client after the other."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1
_CLIENT_APP_RAISED = 2  # Flower's code for an exception in a ClientApp


class InlineGrid(Grid):
    """A grid that calls the ClientApp directly.

    Node ``i + 2`` holds partition ``i``. Each node keeps its context, and with it its
    state, for as long as the grid lives. A ClientApp that raises gives an error reply,
    as it does on Flower's own engines, with the traceback as its reason.
    """

    def __init__(self, client_app: ClientApp, clients: int, run: Run) -> None:
        self._client_app = client_app
        self._run = run
        self._contexts = {
            partition + _SERVER_NODE + 1: Context(
                run_id=run.run_id,
                node_id=partition + _SERVER_NODE + 1,
                node_config={"partition-id": partition, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(clients)
        }
        self._numbers = count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message as Flower's constructor does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All clients' nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Have each message answered at once and keep the reply."""
        ids = []
        for message in messages:
            message_id = str(next(self._numbers))
            self._replies[message_id] = self._answer(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the given messages; each can be pulled once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull their replies; every client answers before this returns."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception:
            error = Error(code=_CLIENT_APP_RAISED, reason=traceback.format_exc())
            return Message(error, reply_to=message)


def identify_server(run: Run) -> None:
    """Make messages created in this process come from the server of a run.

    Messages ask a private class of Flower who sends them; this is the one place that
    fills it, as Flower's own simulation does for apps started from Python.
    """
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = _SERVER_NODE


def run_inline(server_app: ServerApp, client_app: ClientApp, clients: int) -> None:
    """Run a federation in this process.

    Args:
        server_app: Runs the rounds.
        client_app: Answers for every client.
        clients: Number of clients.
    """
    run = Run.create_empty(run_id=1)
    identify_server(run)
    context = Context(
        run_id=run.run_id, node_id=_SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    server_app(InlineGrid(client_app, clients, run), context)
