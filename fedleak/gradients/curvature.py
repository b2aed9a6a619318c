"""The curvature ``JJ'`` in the samples' values: the local inverse of the update map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedleak.gradients.derivatives import Update
from fedleak.gradients.update_map import UpdateMap, unit_directions

_DIGITS = 1e-3
"""Relative error of the largest eigenvalue."""
_KRYLOV = 12
"""Lanczos vectors between two restarts."""
_RESIDUAL = 1e-6
"""Relative residual at which conjugate gradients stop."""


class Curvature:
    """``JJ'`` at one candidate, known by its products.

    ``J`` is Zhang et al.'s: the derivative of the update in the samples' values, with a row
    for each of these ``n`` values and a column for each parameter, so ``JJ'`` is ``n x n``
    whatever the model's size. Where some of the samples vary only, the others are constants.

    Attributes:
        update: The update at the candidate, by name.
        size: ``n``.
    """

    def __init__(
        self, mapping: UpdateMap, inputs: Tensor, labels: Tensor, samples: slice = slice(None)
    ) -> None:
        """Linearise the update map.

        Args:
            mapping: In float64, where small eigenvalues matter.
            inputs: ``(b, *input)``.
            labels: ``(b,)`` or ``(b, K)``.
            samples: Those that vary.
        """
        self._mapping = mapping
        self._inputs = inputs
        self._labels = labels
        self._samples = samples
        self._line = mapping.linearise(inputs[None], labels[None])
        self.update: Update = {name: value[0] for name, value in self._line.update.items()}
        self.size = inputs[samples].numel()

    def pull(self, update: Update) -> Tensor:
        """``J`` times an update, ``(n,)``."""
        given = {name: value[None] for name, value in update.items()}
        return self._line.vjp(given)[0, self._samples].flatten()

    def push(self, values: Tensor) -> Update:
        """``J'`` times ``(n,)``, by name."""
        direction = torch.zeros_like(self._inputs)
        direction[self._samples] = values.reshape(direction[self._samples].shape)
        return {name: value[0] for name, value in self._line.jvp(direction[None]).items()}

    def __matmul__(self, values: Tensor) -> Tensor:
        """``JJ'`` times ``(n,)``."""
        return self.pull(self.push(values))

    def dense(self) -> Tensor:
        """``JJ'`` itself, ``(n, n)``."""
        count = min(self._mapping.directions, self.size)
        inputs, labels = (x.expand(count, *x.shape) for x in (self._inputs, self._labels))
        line = self._mapping.linearise(inputs.clone(), labels)
        rows = []
        for units in unit_directions(self._inputs, self._samples, count):
            padded = torch.cat([units, units.new_zeros(count - len(units), *units.shape[1:])])
            products = line.vjp(line.jvp(padded))[: len(units), self._samples]
            rows.append(products.flatten(1))
        matrix = torch.cat(rows)
        return (matrix + matrix.T) / 2

    def largest(self, seed: int) -> float:
        """The largest eigenvalue to three digits, by Lanczos from a random start."""
        # scipy.sparse.linalg takes a while to import.
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(seed).standard_normal(self.size)
        if self.size <= _KRYLOV:
            return float(torch.linalg.eigvalsh(self.dense())[-1])
        (value,) = eigsh(
            self._operator(0.0),
            k=1,
            which="LA",
            v0=start,
            ncv=_KRYLOV,
            tol=_DIGITS,
            return_eigenvectors=False,
        )
        return float(value)

    def solve(
        self,
        values: Tensor,
        damping: float,
        steps: int,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> Tensor | None:
        """``(JJ' + damping)^-1`` times ``(n,)`` by conjugate gradients.

        Args:
            values: ``(n,)``.
            damping: Added to the eigenvalues.
            steps: At most.
            on_step: Told the number of each step.

        Returns:
            ``(n,)``, or None where so many steps do not bring the residual below 1e-6 of
            the values' norm.
        """
        from scipy.sparse.linalg import cg

        count = itertools.count(1)
        found, left = cg(
            self._operator(damping),
            values.cpu().numpy(),
            rtol=_RESIDUAL,
            atol=0.0,
            maxiter=steps,
            callback=lambda _: on_step(next(count)),
        )
        return None if left else torch.from_numpy(found).to(values)

    def _operator(self, damping: float) -> Any:
        from scipy.sparse.linalg import LinearOperator

        def product(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            given = torch.from_numpy(values.reshape(-1)).to(self._inputs)
            return (self @ given + damping * given).cpu().double().numpy()

        return LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)


def eigen_noise(curvature: Curvature) -> tuple[Tensor, Callable[[int], Update]]:
    """The noise that hides the most, and the least, at a given size.

    With ``JJ' = U L U'``, the noise ``J'u / sqrt(lambda)`` has norm 1 whatever ``u``, is an
    eigenvector of ``J'J``, and moves what the perfect attacker gets by ``u / sqrt(lambda)``:
    its squared error is ``1 / lambda`` (Zhang et al., "Comparing eigenvectors").

    Args:
        curvature: In float64; of at most some thousand values, for ``JJ'`` is formed.

    Returns:
        The eigenvalues ``(m,)`` that can be told from zero, from the largest on, and what
        gives the noise along one of them by its index.
    """
    eigenvalues, vectors = torch.linalg.eigh(curvature.dense())
    rounding = curvature.size * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    known = int((eigenvalues > rounding).sum())
    eigenvalues, vectors = eigenvalues.flip(0)[:known], vectors.flip(1)[:, :known]

    def noise(index: int) -> Update:
        pushed = curvature.push(vectors[:, index])
        return {name: value / eigenvalues[index].sqrt() for name, value in pushed.items()}

    return eigenvalues, noise
