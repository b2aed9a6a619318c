"""Updates kept as products, and the distances that need no more than that.

A dense layer's gradient is a sum of outer products, one per sample. Its norm and its
inner product with a target follow from the factors, without the matrix: ``||g||² = Σ_ij
(a_i·a_j)(d_i·d_j)`` (Goodfellow 2015, arXiv:1510.01799) and ``<g, t> = Σ_i d_i·(t a_i)``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class OuterProducts:
    """``R`` matrices, each a sum of ``n`` outer products.

    Attributes:
        left: ``(R, n, rows)``.
        right: ``(R, n, columns)``.
        shape: The shape that a matrix stands for, ``rows * columns`` elements.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def tensor(self) -> Tensor:
        """The matrices, ``(R, *shape)``."""
        return (self.left.transpose(1, 2) @ self.right).reshape(-1, *self.shape)

    def pays(self) -> bool:
        """Whether norms from the factors take fewer operations than from the matrices."""
        _, count, rows = self.left.shape
        columns = self.right.shape[2]
        return count * (rows + columns) < rows * columns

    @functools.cached_property
    def squared_norms(self) -> Tensor:
        """``(R,)`` float64."""
        grams = (x @ x.transpose(1, 2) for x in (self.left.double(), self.right.double()))
        return functools.reduce(torch.mul, grams).sum((1, 2))

    def products(self, target: Tensor) -> Tensor:
        """Inner products with ``(R, *shape)``, or ``(1, *shape)`` for all: ``(R,)`` float64."""
        # In double precision: what is left of a distance is a difference of these.
        wide = target.double().flatten(2)
        if len(target) == 1:
            ahead = functional.linear(self.right.double(), wide[0])
        else:
            ahead = self.right.double() @ wide.transpose(1, 2)
        return (ahead * self.left.double()).sum((1, 2))


class FactoredUpdate(Mapping[str, Tensor]):
    """An update of ``R`` candidates whose dense layers are made only when looked at."""

    def __init__(self, parts: Mapping[str, list[Tensor | OuterProducts]]) -> None:
        """Take for each parameter the terms of its update."""
        self._parts = parts
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = _sum(
                part.tensor() if isinstance(part, OuterProducts) else part
                for part in self._parts[name]
            )
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def replaced(self, tensors: Mapping[str, Tensor]) -> FactoredUpdate:
        """The same with other values of some parameters, ``(R, *shape)``."""
        return FactoredUpdate({**self._parts, **{name: [t] for name, t in tensors.items()}})

    def products(self, name: str) -> OuterProducts | None:
        """The update of one parameter as outer products, where that saves work."""
        part, *more = self._parts[name]
        return part if isinstance(part, OuterProducts) and not more and part.pays() else None


def cosine_distance(update: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """One minus the cosine between updates and their targets: ``(R,)`` in [0, 2].

    Computed as half the squared distance of the two directions, which is the same and
    keeps its digits where the cosine is close to 1.

    Args:
        update: ``(R, *shape)`` by name.
        target: ``(R, *shape)`` by name, or ``(1, *shape)`` where all have the same.
    """
    squares = _sum(_squared_norms(update, name) for name in target)
    inverse = (squares + torch.finfo(squares.dtype).tiny).rsqrt()
    return _squared_distances(update, target, inverse, 1 / _norms(target)) / 2


def squared_distance(update: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """Squared distance over the target's squared norm: ``(R,)``, 1 for an update of zero.

    Gradients of an untrained network are small, and so is a plain squared distance: its
    values would lie below every tolerance. Relative to the target it has no unit.

    Args:
        update: ``(R, *shape)`` by name.
        target: ``(R, *shape)`` by name, or ``(1, *shape)`` where all have the same.
    """
    scale = 1 / _norms(target)
    return _squared_distances(update, target, scale, scale)


def _squared_norms(update: Mapping[str, Tensor], name: str) -> Tensor:
    factors = update.products(name) if isinstance(update, FactoredUpdate) else None
    if factors is not None:
        return factors.squared_norms
    return _squares(update[name].flatten(1))


def _squared_distances(
    update: Mapping[str, Tensor], target: Mapping[str, Tensor], scale: Tensor, unit: Tensor
) -> Tensor:
    """``||scale * update - unit * target||²``; scale and unit are ``(R,)`` or ``(1,)``."""

    def of(name: str, aim: Tensor) -> Tensor:
        factors = update.products(name) if isinstance(update, FactoredUpdate) else None
        if factors is not None:
            wide = like(unit, aim).double() * aim.double()
            return (
                scale.double().square() * factors.squared_norms
                - 2 * scale * factors.products(wide)
                + wide.flatten(1).square().sum(1)
            )
        value = update[name].flatten(1)
        # As few passes over the gradients as can be: of a large network, they take most time.
        apart = torch.addcmul(-unit[:, None] * aim.flatten(1), value, scale.to(value)[:, None])
        return _squares(apart)

    first = next(iter(target.values()))
    return _sum(of(name, aim) for name, aim in target.items()).to(first.dtype)


def masked(update: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The updates with zeros where they do not count; layers without a mask are not made.

    Args:
        update: ``(R, *shape)`` by name.
        mask: By name, for some: bool, ``(R, *shape)``, or ``(1, *shape)`` for all.
    """
    if not mask:
        return update
    kept = {name: torch.where(counts, update[name], 0) for name, counts in mask.items()}
    if isinstance(update, FactoredUpdate):
        return update.replaced(kept)
    return {**update, **kept}


def like(per_candidate: Tensor, values: Tensor) -> Tensor:
    """View ``(R,)`` so that it broadcasts over ``(R, ...)``."""
    return per_candidate.reshape(-1, *[1] * (values.dim() - 1))


def _squares(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.square()


def _norms(target: Mapping[str, Tensor]) -> Tensor:
    """``(T,)``."""
    return _sum(value.flatten(1).square().sum(1) for value in target.values()).sqrt()


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)
