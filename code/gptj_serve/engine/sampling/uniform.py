"""Random numbers without state: one number for each (seed, sequence, position).

A draw depends on nothing else, so a sequence's tokens do not change with what runs beside it, on which
device, or in which order. All is computed with plain integers, so every engine gets the same bits.

The three words are absorbed one after the other into 64 bits, starting from 0::

    state = mix((state XOR word) + 0x9E3779B97F4A7C15)        mod 2**64

``mix`` is the finaliser of splitmix64 (Steele, Lea and Flood, 2014), a bijection: two positions of
one sequence never share a state. The upper 53 bits over 2**53 are the number.
"""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, sequence_index: int, position: int) -> float:
    """The random number that chooses one token.

    Args:
        seed: 0..2**64-1.
        sequence_index: Which of several sequences for one prompt, 0..2**64-1.
        position: Which generated token, 0 for the first, 0..2**64-1.

    Returns:
        A multiple of 2**-53 in [0, 1).
    """
    return uniform_at(sequence_state(seed, sequence_index), position)


def sequence_state(seed: int, sequence_index: int) -> int:
    """The state after the first two words, which the draws of a sequence have in common."""
    return _absorb(_absorb(0, seed), sequence_index)


def uniform_at(state: int, position: int) -> float:
    """`uniform` for a sequence whose `sequence_state` is known."""
    return (_absorb(state, position) >> 11) * 2.0**-53


def _absorb(state: int, word: int) -> int:
    return mix((state ^ (word & _MASK)) + _GOLDEN)


def mix(word: int) -> int:
    """Spread every bit of a word over all 64 bits; carries above them are dropped first."""
    word &= _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
