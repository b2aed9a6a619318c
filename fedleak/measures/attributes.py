"""Which samples have an attribute."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedleak.errors import nearest
from fedleak.records import Dataset


class NoSuchAttribute(ValueError):
    """The samples cannot be told apart by it; says why."""


def having(
    dataset: Dataset, attribute: str, value: str | int | None = None, above: float | None = None
) -> npt.NDArray[np.bool_]:
    """Which samples have an attribute, ``(n,)``: some have it and some do not.

    Args:
        dataset: The samples.
        attribute: One of its attributes.
        value: The value that counts as having it; of two, the last in order if not given.
        above: In place of ``value``, of numbers: more than this counts as having it.

    Raises:
        NoSuchAttribute: It is not there, has no value for some samples, is the same for all,
            has more than two values of which none is named, or is no number.
    """
    if attribute not in dataset.attributes:
        known = ", ".join(dataset.attributes) or "none"
        raise NoSuchAttribute(
            f"the data has no attribute {attribute!r}, only: {known}."
            + nearest(attribute, dataset.attributes)
        )
    column = dataset.attributes[attribute]
    missing = sum(entry is None or entry != entry or entry == "" for entry in column.tolist())
    if missing:
        raise NoSuchAttribute(
            f"attribute {attribute!r} has no value for {missing} of {len(column)} samples; "
            "complete it or remove them"
        )
    values = np.unique(column)
    if above is not None:
        if column.dtype.kind not in "iuf":
            raise NoSuchAttribute(f"attribute {attribute!r} is no number to be above {above:g}")
        has = column.astype(np.float64) > above
        wanted = f"above {above:g}"
    else:
        if value is None:
            if len(values) > 2:
                raise NoSuchAttribute(
                    f"attribute {attribute!r} has {len(values)} values; say with 'value' or "
                    "'above' which of them count as having it"
                )
            value = values[-1].item()
        # As texts: a column of a CSV file holds nothing else.
        has = column.astype(str) == str(value)
        wanted = repr(value)
    if len(values) == 1:
        raise NoSuchAttribute(
            f"attribute {attribute!r} is {values[0].item()!r} for all {len(column)} samples"
        )
    if not has.any() or has.all():
        which = "all samples are" if has.all() else "no sample is"
        raise NoSuchAttribute(f"attribute {attribute!r}: {which} {wanted}")
    return np.asarray(has, dtype=bool)
