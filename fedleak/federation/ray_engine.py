"""The Ray engine: Flower's own simulation, clients spread over cores and machines."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fedleak.private_ray import seclude_ray

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp


def run_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    clients: int,
    cpus_per_client: int,
    gpus_per_client: float,
) -> None:
    """Run a federation in Flower's simulation.

    Flower starts Ray and shuts it down.

    Args:
        server_app: Runs the rounds, in a thread of this process.
        client_app: Runs in Ray actors; must be picklable.
        clients: Number of virtual nodes.
        cpus_per_client: CPUs booked per actor.
        gpus_per_client: GPUs, or a share of one, booked per actor.
    """
    seclude_ray()
    # Only now: this imports Ray.
    import flwr.simulation

    failures: list[BaseException] = []

    def simulate() -> None:
        try:
            flwr.simulation.run_simulation(
                server_app,
                client_app,
                num_supernodes=clients,
                backend_config={
                    "client_resources": {
                        "num_cpus": cpus_per_client,
                        "num_gpus": gpus_per_client,
                    },
                    "init_args": {"include_dashboard": False},
                },
            )
        except BaseException as failure:
            failures.append(failure)

    # In a thread, because Flower waits for its workers when Ctrl-C interrupts it.
    simulation = threading.Thread(target=simulate, daemon=True)
    simulation.start()
    while simulation.is_alive():
        simulation.join(timeout=0.2)
    if failures:
        raise failures[0]
