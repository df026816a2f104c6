"""Decoding in processes of its own: clips are written once, straight into the memory that batches are run from.

`pool.py` is the caller's side: it starts processes (`process.py`), hands them files and places for clips (`slots.py`),
and replaces those that die or hang. `worker.py` is the other side. `here.py` does the same in the calling process.
What both give is in `events.py`.
"""
