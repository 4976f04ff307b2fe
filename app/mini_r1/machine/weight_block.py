"""Size of the shared memory that weights go to vLLM through: the plan counts it, and the trainer fills it."""

from typing import Final

GROUP_BYTES: Final = 64 * 2**20
"""Bytes of tensors that one message covers. A copy of this size takes milliseconds, a message a tenth of one."""


def block_bytes(largest: int) -> int:
    """Return the bytes of the block: two groups, one filled while the other is read, or the `largest` tensor."""
    return max(2 * GROUP_BYTES, largest)
