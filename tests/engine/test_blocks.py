"""Every sample of every image is in one row, blocks are whole, and nothing but the rows limits a micro-batch."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothfast.engine.blocks import BLOCK, packed

few = st.integers(1, 12)


@given(images=few, samples=st.integers(1, 40), rows=st.integers(1, 40), together=st.none() | few)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_packing(images: int, samples: int, rows: int, together: int | None) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    order: dict[int, list[int]] = {image: [] for image in range(images)}
    for batch in packed(images, samples, rows, together):
        assert batch.table.shape == (3, rows)
        live = batch.table[:, batch.table[0] >= 0]
        assert (batch.table[:, batch.table[0] < 0] == -1).all()
        seen.update(zip(live[0].tolist(), live[2].tolist(), strict=True))
        assert together is None or max(Counter(live[0].tolist()).values()) <= together
        assert sorted(torch.cat(batch.places, 1)[0].tolist()) == list(range(batch.count))
        for blocks, of in batch.places:
            assert len(set(of.tolist())) == len(of)
            for block, image in zip(blocks.tolist(), of.tolist(), strict=True):
                own = live[:, live[1] == block]
                assert own[0].tolist() == [image] * own.shape[1]
                first = int(own[2, 0])
                assert own[2].tolist() == list(range(first, first + own.shape[1]))
                assert first % min(BLOCK, rows, together or samples, samples) == 0
                order[image].append(first)
    assert seen == Counter({(image, sample): 1 for image in range(images) for sample in range(samples)})
    assert all(firsts == sorted(firsts) for firsts in order.values())  # sums are taken in this order


def test_micro_batches_are_full() -> None:
    assert [int((batch.table[0] >= 0).sum()) for batch in packed(20, 8, 64, None)] == [64, 64, 32]
    assert [int((batch.table[0] >= 0).sum()) for batch in packed(3, 100, 64, None)] == [64, 60, 64, 60, 52]
    assert [int((batch.table[0] >= 0).sum()) for batch in packed(5, 3, 64, 1)] == [5, 5, 5]
