"""Usable latent information: what gradients tell of an attribute (Mo et al., Eq. 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedleak.measures.attributes import NoSuchAttribute, having
from fedleak.measures.inference import MEMBERS, Floats, Member, Part, information
from fedleak.measures.intervals import mean_interval
from fedleak.measures.layers import layers_of
from fedleak.measures.measure import Evidence, Measure, Value
from fedleak.records import DataSplits, Indices, Setting, Truth
from fedleak.seeding import derive, stream

_MOST_BYTES = 4 * 2**30
"""Memory that the gradients of all batches may take."""

_SHARES = (0.5, 0.25, 0.25)
"""Of samples and of batches: those to fit on, to calibrate on and to score."""


class UsableLatent(Measure):
    """Bits that each layer's gradients tell of an attribute, by trained inference models.

    Mo et al. (arXiv:2105.13929v3), Eq. 1. The central party has data like the clients'. It
    computes what a client would release, at the weights sent and with the client's defenses,
    of many batches with the attribute and many without; fits models to half of them; and what
    counts is the log-likelihood of others, held out, over that of the prior
    (`fedleak.measures.inference`). Batches to fit on, to calibrate on and to score have no
    sample in common. The samples are those of the federation.

    A batch without the attribute has no sample that has it. In one with the attribute,
    ``carriers`` samples have it. With ``target`` in place of an attribute it is membership:
    whether a batch holds that sample.

    ``usable-latent`` is of the family's best model, ``usable-latent-forest`` and so on of one
    kind. 0 without an interval says that no model was better than ignoring the gradients; at a
    prior of 1/2 there is one bit at most, and about 1 - 3 / n of it is what calibration on n
    batches can be sure of. The 95 % interval
    (Student's t) is over the batches scored. They may share samples with each other, so it
    says how well this data was measured, not how other data would do.
    """

    kind: Literal["usable-latent"] = "usable-latent"
    attribute: str | None = Field(None, description="attribute of the data, for example gender")
    value: str | int | None = Field(
        None, description="its value that counts as having it; the last in order of two"
    )
    above: float | None = Field(
        None, description="of numbers, in place of value: what is above counts as having it"
    )
    target: int | None = Field(
        None, ge=0, description="training sample whose membership is inferred, not an attribute"
    )
    batch: int = Field(32, ge=1, le=100_000, description="samples of a batch")
    carriers: int | None = Field(
        None,
        ge=1,
        description="samples that have the attribute in a batch that has it; default all, or "
        "the target alone",
    )
    batches: int = Field(400, ge=40, le=1_000_000, description="batches, of both kinds")
    prior: Literal["half", "empirical"] = Field(
        "half",
        description="with and without the attribute equally often, or as often as samples have it",
    )
    family: tuple[Member, ...] = Field(
        MEMBERS, min_length=1, description="kinds of inference models: forest, logistic, mlp"
    )
    fraction: float | None = Field(
        None, gt=0, le=1, description="share of each layer's entries that is seen, drawn at random"
    )
    entries: int | None = Field(
        None, ge=1, description="in place of a share: number of each layer's entries that is seen"
    )

    of: ClassVar[Literal["client", "round"]] = "round"
    needs: ClassVar[frozenset[Literal["truth", "data", "release"]]] = frozenset({"data", "release"})
    metrics: ClassVar[tuple[str, ...]] = (
        "usable-latent",
        *(f"usable-latent-{member}" for member in MEMBERS),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.attribute is None) == (self.target is None):
            raise ValueError("give either attribute or target")
        if self.target is not None and (self.value is not None or self.above is not None):
            raise ValueError("a target has no value; give attribute with value or above")
        if self.value is not None and self.above is not None:
            raise ValueError("give value or above, not both")
        if self.fraction is not None and self.entries is not None:
            raise ValueError("give fraction or entries, not both")
        if self._carriers > self.batch:
            raise ValueError(f"carriers ({self.carriers}) must be at most batch ({self.batch})")
        if self.target is not None and self._carriers > 1:
            raise ValueError("a target is one sample: carriers must be 1")
        return self

    @property
    def _carriers(self) -> int:
        return self.carriers or (self.batch if self.target is None else 1)

    def unsupported(self, setting: Setting) -> str | None:
        if setting.data is None:
            return None
        try:
            pools = self._pools(setting.data, seed=0)
        except NoSuchAttribute as reason:
            return str(reason)
        for named, needed, index in (("with", self._carriers, 0), ("without", self.batch, 1)):
            least = min(len(pool[index]) for pool in pools)
            if least < needed:
                return (
                    f"batches need {needed} samples {named} the attribute, and a quarter of the "
                    f"data, on which they are scored, has {least}"
                )
        sizes = [p.numel() for p in setting.model.parameters() if p.requires_grad]
        asked = self.entries or math.inf
        kept = sum(min(asked, size * (self.fraction or 1)) for size in sizes)
        # Each layer's, and all of them together.
        needed_bytes = 8 * kept * self.batches
        if needed_bytes > _MOST_BYTES:
            return (
                f"{self.batches} gradients of {kept:.3g} entries take "
                f"{needed_bytes / 2**30:.1f} GiB, more than "
                f"{_MOST_BYTES / 2**30:.0f}; see less of each layer with entries or fraction"
            )
        return None

    def measure(self, evidence: Evidence) -> Iterator[Value]:
        assert evidence.data is not None
        pools = self._pools(evidence.data, evidence.seed)
        share = 0.5
        if self.prior == "empirical" and self.attribute is not None:
            share = float(having(evidence.data.train, *self._asked).mean())
        parts = self._gradients(evidence, pools, share)
        for layer in parts[0]:
            fit, calibrate, held_out = (part[layer] for part in parts)
            seed = derive(evidence.seed, f"usable-latent/{layer}")
            found = information(self.family, fit, calibrate, held_out, share, seed)
            for name, values in found.items():
                metric = f"usable-latent-{name}" if name else "usable-latent"
                if not values.any():  # the gradients are ignored: nothing was weighed
                    yield Value(metric, 0.0, layer or None)
                    continue
                mean, low, high = mean_interval(values.tolist())
                yield Value(metric, mean, layer or None, low=low, high=high)

    @property
    def _asked(self) -> tuple[str, str | int | None, float | None]:
        assert self.attribute is not None
        return self.attribute, self.value, self.above

    def _pools(self, data: DataSplits, seed: int) -> list[tuple[Indices, Indices]]:
        """Samples with and without the attribute, of each part."""
        count = len(data.train)
        if self.target is None:
            has = having(data.train, *self._asked)
        else:
            if self.target >= count:
                raise NoSuchAttribute(f"there is no sample {self.target}, only {count}")
            has = np.arange(count) == self.target
        rng = stream(seed, "usable-latent/parts")
        sides = []
        for side in (np.flatnonzero(has), np.flatnonzero(~has)):
            if self.target is not None and len(side) == 1:
                # The target is the same in all parts: it is what they are about.
                sides.append([side] * len(_SHARES))
                continue
            ends = np.cumsum([round(part * len(side)) for part in _SHARES[:-1]])
            sides.append(np.split(rng.permutation(side), ends))
        return list(zip(*sides, strict=True))

    def _gradients(
        self, evidence: Evidence, pools: list[tuple[Indices, Indices]], share: float
    ) -> list[dict[str, Part]]:
        """Of each part, what is seen of its batches, by layer and by ``""`` of all layers."""
        assert evidence.data is not None and evidence.release is not None
        train = evidence.data.train
        done, parts = 0, []
        for number, (pool, part) in enumerate(zip(pools, _SHARES, strict=True)):
            count = round(part * self.batches)
            rng = stream(evidence.seed, f"usable-latent/batches-{number}")
            # Some of both kinds, whatever the share.
            has = rng.permutation(np.arange(count) < min(max(round(share * count), 2), count - 2))
            seen: dict[str, list[Floats]] = {}
            for each in has:
                carriers = self._carriers if each else 0
                chosen = np.concatenate(
                    [
                        rng.choice(pool[0], carriers, replace=False),
                        rng.choice(pool[1], self.batch - carriers, replace=False),
                    ]
                )
                batch = Truth(train.samples(chosen), train.labels[chosen])
                update = evidence.release(batch, derive(evidence.seed, f"usable-latent/{done}"))
                for layer, values in self._seen(update, evidence.seed).items():
                    seen.setdefault(layer, []).append(values)
                done += 1
                evidence.progress(done, self.batches)
            layers = {layer: Part(np.stack(rows), has) for layer, rows in seen.items()}
            whole = np.concatenate([layer.gradients for layer in layers.values()], axis=1)
            parts.append({**layers, "": Part(whole, has)})
        return parts

    def _seen(self, update: Mapping[str, Tensor], seed: int) -> dict[str, Floats]:
        """The entries of each layer that are seen, the same of every batch."""
        seen = {}
        for layer, names in layers_of(update).items():
            values = torch.cat([update[name].detach().flatten() for name in names]).cpu().numpy()
            size = values.size
            kept = min(self.entries or math.ceil((self.fraction or 1) * size), size)
            if kept < size:
                rng = stream(seed, f"usable-latent/entries-{layer}")
                values = values[rng.choice(size, kept, replace=False)]
            seen[layer] = values.astype(np.float32)
        return seen
