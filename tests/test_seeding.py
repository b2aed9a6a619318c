"""Named random streams and reproducible arithmetic."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedleak.seeding import derive, reproducible, stream

NAMES = st.tuples(
    st.integers(0, 2**63 - 1),
    st.sampled_from(["batches", "partition", "sampling"]),
    st.none() | st.integers(0, 1000),
    st.none() | st.integers(1, 1000),
)


@given(NAMES, NAMES)
def test_a_stream_depends_on_its_whole_name_and_on_nothing_else(one, other):
    assert (derive(*one) == derive(*other)) == (one == other)
    assert 0 <= derive(*one) < 2**63
    assert stream(*one).integers(2**32) == stream(*one).integers(2**32)


def test_reproducible_leaves_the_process_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    with reproducible(1):
        torch.rand(100)
        assert torch.get_num_threads() == 1
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
