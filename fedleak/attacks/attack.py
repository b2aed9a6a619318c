"""What every attack offers, and the check that an observation can be attacked at all."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

from fedleak.components import Applicable
from fedleak.errors import AttackFailed
from fedleak.records import Observation, Reconstruction

Progress = Callable[[int, int, float], None]
"""Called now and then with the iteration, their total and the best objective so far."""


class Attack(Applicable):
    """Turns an observation into a reconstruction."""

    @abstractmethod
    def reconstruct(
        self, observation: Observation, seed: int, progress: Progress | None = None
    ) -> Reconstruction:
        """Attack one observation.

        Args:
            observation: What the threat model lets an attack see.
            seed: Seed of the attack's own random draws; the same seed on the same kind
                of device gives the same reconstruction.
            progress: Told now and then how far the attack is.

        Raises:
            AttackFailed: The observation is unusable, or every candidate diverged.
        """

    @property
    def appetite(self) -> int:
        """Observations that are worth attacking together, >= 1."""
        return 1

    def candidates(self, observations: int) -> int:
        """Candidates evaluated at a time, at most, for so many observations together, >= 1."""
        return 1

    def reconstruct_each(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        progress: Progress | None = None,
    ) -> Iterator[dict[int, Reconstruction | AttackFailed]]:
        """Attack several observations, together where that is faster.

        Yields what was made of those attacked together, by index, as soon as it is known.
        """
        for index, (observation, seed) in enumerate(zip(observations, seeds, strict=True)):
            try:
                yield {index: self.reconstruct(observation, seed, progress)}
            except AttackFailed as failure:
                yield {index: failure}


def refuse_unusable(observation: Observation) -> None:
    """Refuse an update that is not finite or does not fit the model.

    Raises:
        AttackFailed: Names the parameter at fault.
    """
    for name, parameter in observation.parameters.items():
        value = observation.update.get(name)
        if value is None:
            raise AttackFailed(f"the update has no {name!r}, which the model has")
        if value.shape != parameter.shape:
            raise AttackFailed(
                f"the update of {name!r} has shape {tuple(value.shape)}, "
                f"the model's is {tuple(parameter.shape)}"
            )
        if not value.isfinite().all():
            raise AttackFailed(f"the update of {name!r} has values that are not finite")
