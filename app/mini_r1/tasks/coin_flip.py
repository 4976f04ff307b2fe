"""The value of the reward `random`, the random-reward control of every task."""

from hashlib import blake2b


def coin_flip(text: str) -> float:
    """Return 0 or 1 with equal probability, by a hash: the same for the same text on every machine."""
    # surrogatepass: a decoded completion may hold lone surrogates, which strict UTF-8 refuses.
    return float(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1)
