"""Seeds of random numbers that a resumed run must draw again."""

BITS = 2**64 - 1


def step_seed(seed: int, iteration: int, rank: int) -> int:
    """Return the seed of a step's random numbers, a signed 64-bit number, so that dropout can be repeated.

    It is the hash of the tuple (seed, iteration, rank) in 64-bit CPython, which is xxHash with numbers as its
    input. Written out, it is the same with any Python, and runs resume with the seeds that they began with.
    """
    multipliers = 11400714785074694791, 14029467366897019727
    start = 2870177450012600261
    numbers = seed, iteration, rank
    value = start
    for number in numbers:
        value = (value + number % (2**61 - 1) * multipliers[1]) & BITS
        value = (value << 31 | value >> 33) & BITS
        value = value * multipliers[0] & BITS
    value = (value + (len(numbers) ^ start ^ 3527539)) & BITS
    signed = value - 2**64 if value >= 2**63 else value
    return 1546275796 if signed == -1 else signed
