"""Top-k and quantisation: what is released, and the bytes that a message would take."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats

from clients.defenses import GradientPruning, Quantise, TopK, released

from .test_releasing import sent_of, trained, update

ENTRIES = [40 * 64, 40, 10 * 40, 10]


def release(model, turn, *defenses, seed=5):
    """The plain and the released update, flat, and what was reported."""
    after, sent = trained(model, seed), sent_of(model)
    plain = update(after, sent)
    metrics = released(defenses, after, sent, turn)
    return plain, update(after, sent), metrics


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_top_k_keeps_the_largest_entries(model, turn, scope):
    plain, sparse, _ = release(model, turn(), TopK(fraction=0.05, scope=scope))
    parts = plain.split(ENTRIES) if scope == "layer" else [plain]
    expected = []
    for part in parts:
        kept = max(1, round(0.05 * len(part)))
        least = part.abs().sort(descending=True).values[kept - 1]
        expected.append(torch.where(part.abs() >= least, part, 0.0))
    assert torch.equal(sparse, torch.cat(expected))


def test_top_k_is_pruning_of_the_rest(model, turn):
    (_, sparse, _), (_, pruned, _) = (
        release(model, turn(), TopK(fraction=0.25)),
        release(model, turn(), GradientPruning(rate=0.75)),
    )
    # But for the tensor of 10, of which 2.5 entries are kept: one more or one less.
    assert torch.equal(sparse[:-10], pruned[:-10])


def test_top_k_counts_a_value_and_an_index_for_each_entry_kept(model, turn):
    *_, metrics = release(model, turn(), TopK(fraction=0.1))
    sent = 8 * (256 + 4 + 40 + 1)
    assert metrics == {"top-k/bytes": sent, "top-k/bytes-saved": 4 * sum(ENTRIES) - sent}
    *_, whole = release(model, turn(), TopK(fraction=0.1, scope="model"))
    assert whole["top-k/bytes"] == 8 * 301
    # Where indices cost more than they save, every entry is sent.
    *_, most = release(model, turn(), TopK(fraction=0.9))
    assert most == {"top-k/bytes": 4 * sum(ENTRIES), "top-k/bytes-saved": 0}


def test_top_k_sends_what_it_left_out_later(model, turn):
    defense = TopK(fraction=0.2, error_feedback=True)
    first, second = (release(model, turn(round=r), defense, seed=r)[:2] for r in (1, 2))
    plain = first[0] + second[0]
    third = release(model, turn(round=3), TopK(fraction=1.0), seed=3)
    left = third[1] - third[0]
    # Nothing is lost: what was not sent in two rounds comes with the third.
    torch.testing.assert_close(first[1] + second[1] + left, plain, rtol=0, atol=1e-6)
    assert float(left.abs().max()) > 0
    # A client that takes part for the first time has nothing to add.
    other = release(model, turn(client=1, round=2), defense, seed=1)
    assert torch.equal(other[1], first[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_quantised_entries_lie_on_the_levels_beside_them(model, turn, bits, rounding):
    plain, rounded, _ = release(model, turn(), Quantise(bits=bits, rounding=rounding))
    levels = 2 ** (bits - 1) - 1
    for was, part in zip(plain.split(ENTRIES), rounded.split(ENTRIES), strict=True):
        step = float(was.abs().max()) / levels
        level = part / step
        # Weights travel as float32, beside which the update is small.
        torch.testing.assert_close(level, level.round(), rtol=0, atol=1e-3)
        assert len(level.round().unique()) <= 2 * levels + 1
        most = 1.0 if rounding == "stochastic" else 0.5
        assert float((part - was).abs().max()) <= (most + 1e-3) * step


def test_stochastic_rounding_is_unbiased_and_nearest_is_not(model, turn):
    """A correct rounding fails with probability 1e-6."""
    plain = update(trained(model), sent_of(model))
    step = torch.cat([p.abs().max().expand(len(p)) for p in plain.split(ENTRIES)]) / 7

    def errors_of(**settings):
        defense = Quantise(bits=4, **settings)
        rounds = [release(model, turn(round=r), defense)[1] - plain for r in range(1, 41)]
        return np.stack([error / step for error in rounds])

    errors = errors_of()
    # Errors are at most one step, independent, with variance f (1 - f) of the fraction f.
    fraction = (plain / step - (plain / step).floor()).numpy()
    expected = fraction * (1 - fraction)
    deviation = math.sqrt(len(errors) * expected.sum())
    # Neither towards one side nor towards zero.
    for signs in (1.0, np.sign(plain.numpy())):
        assert abs((errors * signs).sum()) < stats.norm.isf(2.5e-7) * deviation
    assert errors.var(0).mean() == pytest.approx(expected.mean(), rel=0.05)
    assert not np.ptp(errors_of(rounding="nearest"), axis=0).any()


def test_quantisation_keeps_zeros_and_counts_bits(model, turn):
    pruning, rounding = GradientPruning(rate=0.5), Quantise(bits=5)
    _, both, metrics = release(model, turn(), pruning, rounding)
    assert float((both == 0).double().mean()) >= 0.5
    sent = sum(math.ceil(n * 5 / 8) + 4 for n in ENTRIES)
    assert metrics == {"quantise/bytes": sent, "quantise/bytes-saved": 4 * sum(ENTRIES) - sent}


def test_an_update_that_is_zero_stays_so(model, turn):
    after = copy.deepcopy(model)
    before = sent_of(after)
    released([TopK(), Quantise()], after, before, turn())
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
