"""Classes of predicted spread: merging pays, its prices are those of real tables, and too many spreads share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantgolf.encode.contexts import MOST_GROUPS, choose_contexts, group_spreads
from quantgolf.encode.table import SYMBOLS, choose_roots, frequencies, symbol_bits, table_costs, write_table


def test_merging_is_never_worse_than_one_class_or_all() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((40, 2, SYMBOLS), dtype=np.int64)
    for i in range(40):
        for odd in range(2):
            k = rng.normal(0, 2 ** (i / 8), 40 * i).round().astype(int) + 127
            counts[i, odd] = np.bincount(k.clip(0, 254), minlength=SYMBOLS)
    contexts, histograms = choose_contexts(np.arange(40), counts)
    assert 1 < len(histograms) // 2 < 40 and np.array_equal(histograms.sum(axis=0), counts.sum(axis=(0, 1)))
    bits = table_costs(histograms).sum()
    assert bits < table_costs(counts.reshape(-1, SYMBOLS)).sum() and bits < table_costs(counts.sum(axis=0)).sum()
    assert len(contexts.write(odd=True)) == sum(len(write_table(r)) for r in contexts.roots if r is not None) + (
        1 + len(contexts.thresholds)
    )


@given(st.lists(st.dictionaries(st.integers(0, 255), st.integers(1, 10**6)), min_size=1, max_size=4))
@settings(deadline=None)
def test_costs_of_many_tables_are_those_of_each(histograms: list[dict[int, int]]) -> None:
    counts = np.zeros((len(histograms), SYMBOLS), dtype=np.int64)
    for row, histogram in zip(counts, histograms, strict=True):
        row[list(histogram)] = list(histogram.values())
    for row, cost in zip(counts, table_costs(counts), strict=True):
        roots = choose_roots(row) if row.any() else None
        exact = 0.0 if roots is None else 8 * len(write_table(roots)) + symbol_bits(row, frequencies(roots))
        assert cost == pytest.approx(exact, rel=1e-9)


@given(st.sets(st.integers(-(2**17), 2**17), min_size=1, max_size=500))
def test_groups_begin_at_spreads_and_are_few(values: set[int]) -> None:
    spreads = np.array(sorted(values))
    groups = group_spreads(spreads)
    assert groups[0] == spreads[0] and np.isin(groups, spreads).all() and (np.diff(groups) > 0).all()
    assert len(groups) == len(spreads) if len(spreads) <= MOST_GROUPS else len(groups) <= MOST_GROUPS
