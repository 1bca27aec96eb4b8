"""Which keys a block of queries sees, as chunks a kernel can run: whole, or causal aligned at the last key."""

from __future__ import annotations

from simulator.program import Chunk, Segment
from simulator.tile import Batch, Block, Span


def visible_keys(batch: Batch, block: Block, window: int, kv_index: int, kv_blocks: int, *, causal: bool) -> Block:
    """Key positions that any query of ``block`` sees, within KV block ``kv_index`` of ``kv_blocks`` even ones."""
    visible: list[tuple[Span, ...]] = []
    for group, spans in zip(batch, block, strict=True):
        if not spans:
            visible.append(())
            continue
        low = max(0, spans[0][0] - window + 1) if window else 0
        high = spans[-1][1] if causal else group.total
        start = max(low, kv_index * group.total // kv_blocks)
        stop = min(high, (kv_index + 1) * group.total // kv_blocks)
        visible.append(((start, stop),) if start < stop else ())
    return tuple(visible)


def prefill_segments(batch: Batch, block: Block, keys: Block, window: int, *, causal: bool) -> tuple[Segment, ...]:
    """One segment a group; each query span is cut where the keys held begin and end."""
    segments = []
    for group, spans, held in zip(batch, block, keys, strict=True):
        start, stop = held[0] if held else (0, 0)
        chunks = tuple(chunk for span in spans for chunk in _chunks(span, (start, stop), window, causal=causal))
        segments.append(Segment(group.count, chunks, stop - start))
    return tuple(segments)


def _chunks(span: Span, keys: Span, window: int, *, causal: bool) -> list[Chunk]:
    """Queries [a, b) against keys [start, stop): before the keys none, within them causal, after them all."""
    (a, b), (start, stop) = span, keys
    if not causal:
        return [Chunk(b - a, 0, stop - start, False)]
    chunks = []
    if a < min(b, start):
        chunks.append(Chunk(min(b, start) - a, 0, 0, False))
    low, high = max(a, start), min(b, stop)
    if low < high:
        first = max(0, low - window + 1 - start) if window else 0
        chunks.append(Chunk(high - low, first, high - start, True))
    if max(a, stop) < b:
        chunks.append(Chunk(b - max(a, stop), 0, stop - start, False))
    return chunks


def decode_segments(batch: Batch, block: Block, rows: tuple[int, ...], window: int) -> tuple[Segment, ...]:
    """The one query of each sequence against its cache rows, or the last ``window`` of them."""
    segments = []
    for group, spans, held in zip(batch, block, rows, strict=True):
        first = max(0, held - window) if window else 0
        chunks = (Chunk(1, first, held, False),) if spans else ()
        segments.append(Segment(group.count, chunks, held))
    return tuple(segments)


def ring_segments(batch: Batch, block: Block, keys: Block, *, causal: bool) -> tuple[Segment, ...]:
    """A block's queries against a block of keys that is its own or has no position in common with it.

    Spans of keys ascend, so a query span sees the first rows of them: the spans before it whole, its own causally.
    """
    segments = []
    for group, spans, held in zip(batch, block, keys, strict=True):
        rows = sum(stop - start for start, stop in held)
        chunks = []
        for start, stop in spans:
            before = sum(last - first for first, last in held if last <= start) if causal else rows
            own = causal and (start, stop) in held
            chunks.append(Chunk(stop - start, 0, before + (stop - start if own else 0), own))
        segments.append(Segment(group.count, tuple(chunks), rows))
    return tuple(segments)
