"""A stack of bits on which values are pushed with a distribution, and from which they are popped.

Pushing a value of probability P adds −log₂ P bits; popping it removes them again. Popping a value that was
not pushed draws it from the given distribution, with the bits of the stack as randomness. The coder is
asymmetric numeral systems, from the package constriction, with probabilities of 24 bits.

Gaussians are over integers: P(k) is the Gaussian's mass from k − ½ to k + ½.
"""

from collections.abc import Iterator
import functools
import hashlib
import math
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from vdm.errors import UserError

Numbers = Int[np.ndarray, "n"]
Reals = Float[np.ndarray, "n"]

# A Gaussian's range ends at this many standard deviations or more, but less than twice as many. A drawn value
# is always in the range; a pushed value may lie outside, and then costs additional bits.
REACH = 6.0
SYMBOL = 24  # largest number of bits that popping a symbol takes
DIGIT = 16  # bits that are scrambled together
ENTROPY = math.sqrt(2.0 * math.pi * math.e)  # 2^entropy of a Gaussian, in standard deviations
# The words of a new stack, bottom first: the fewest with which probabilities are exact to their 24 bits.
START = np.array([0, 1], np.uint32)
START_BITS = 32
NOTHING = np.zeros(0, np.uint32)
LENGTHS = 25  # number of possible bit lengths of a value's distance from the range: 0 to 24


class Damaged(Exception):
    """The bits of a file, or the distributions, differ from those that wrote it."""


class Stack:
    """One stack. A new stack adds random bits at its bottom whenever it needs more.

    Args:
      seed, number: determine the random bits.
      words: the stack's words in a file; None for a new stack.
      lowest: words at the bottom of a new stack, which draws use before random bits.

    Raises:
      Damaged: the words are not those of a stack.
    """

    def __init__(self, seed: int, number: int, words: Any = None, lowest: Any = NOTHING):
        self._seed, self._number = seed, number
        self._start = 32 * len(lowest) + START_BITS  # bits of a new stack
        self._made = 0  # number of random words so far; the lowest word is the newest
        self._grows = words is None
        try:
            self._coder = constriction().stream.stack.AnsCoder(
                np.append(lowest, START) if words is None else words
            )
        except ValueError as error:
            raise Damaged from error
        self._lowest = self._coder.num_words()

    @property
    def bits(self) -> float:
        """The number of bits on the stack, without those of a new stack and the random bits."""
        words, top = self._coder.pos()
        return 32 * words + math.log2(top) - self._start - 32 * self._made

    def words(self) -> tuple[Any, int]:
        """The stack as 32-bit words, bottom first, without random words that were never reached; and the
        number of random words that are left."""
        untouched = max(0, min(self._made, self._lowest - 2))  # the top has two words
        return self._coder.get_compressed()[untouched:], self._made - untouched

    def lowest(self, initial: int) -> Any:
        """The words that were at the bottom of the new stack, once all that was pushed has been popped.

        Args:
          initial: number of random words.

        Raises:
          Damaged: other words are left than these, START and `initial` random words.
        """
        words, top = self._coder.get_compressed(), -len(START)
        if initial > len(words) + top:
            raise Damaged
        right = np.array_equal(words[:initial], self._random(0, initial)) and np.array_equal(
            words[top:], START
        )
        if not right:
            raise Damaged
        return words[initial:top]

    def draw(self, mean: Reals, deviation: Reals, turn: int) -> Numbers:
        """Draws integers from Gaussians, by popping values that were not pushed.

        Args:
          turn: selects how the bits are scrambled before the draw; must differ between calls.
        """
        self._scramble(deviation, turn)
        base, numbers = np.rint(mean), np.empty(mean.shape)
        for reach, where in _groups(deviation):
            numbers[where] = self._pop(gaussian(reach), (mean - base)[where], deviation[where])
        return (numbers + base).astype(np.int64)

    def give_back(self, numbers: Numbers, mean: Reals, deviation: Reals, turn: int) -> None:
        """The inverse of `draw`.

        Raises:
          Damaged: `draw` cannot have returned one of the numbers.
        """
        base = np.rint(mean)
        for reach, where in reversed(list(_groups(deviation))):
            symbols = (numbers - base)[where]
            if np.abs(symbols).max() > reach:
                raise Damaged
            self._push(symbols, gaussian(reach), (mean - base)[where], deviation[where])
        self._scramble(deviation, turn)

    def push(self, numbers: Numbers, mean: Reals, deviation: Reals) -> None:
        """Pushes numbers with Gaussians, however far they lie from the mean."""
        base = np.rint(mean)
        for reach, where in reversed(list(_groups(deviation))):
            symbols = (numbers - base)[where]
            beyond = (np.abs(symbols) - reach).astype(np.int64)
            for one in beyond[beyond >= 0][::-1].tolist():
                self._push_whole(one)
            within = np.clip(symbols, -reach, reach)
            self._push(within, gaussian(reach), (mean - base)[where], deviation[where])

    def pop(self, mean: Reals, deviation: Reals) -> Numbers:
        """The inverse of `push`."""
        base, numbers = np.rint(mean), np.empty(mean.shape)
        for reach, where in _groups(deviation):
            symbols = self._pop(gaussian(reach), (mean - base)[where], deviation[where]).astype(np.int64)
            for place in np.flatnonzero(np.abs(symbols) == reach):
                symbols[place] += np.sign(symbols[place]) * self._pop_whole()
            numbers[where] = symbols
        return (numbers + base).astype(np.int64)

    def push_levels(self, levels: Numbers, probabilities: Float[np.ndarray, "n vocab_size"]) -> None:
        """Pushes levels, each with its own probabilities."""
        self._push(levels, categorical(), probabilities)

    def pop_levels(self, probabilities: Float[np.ndarray, "n vocab_size"]) -> Numbers:
        """The inverse of `push_levels`."""
        return self._pop(categorical(), probabilities)

    def _scramble(self, deviation: Reals, turn: int) -> None:
        """Flips a fixed random half of the topmost bits, which are about as many as a draw with these
        deviations takes. A second call restores the bits.

        Without this, a value would be drawn with the bits of a value that was just pushed, and would depend
        on it.
        """
        bits = np.sum(np.log2(np.maximum(ENTROPY * deviation, 1.0)))
        count = int(bits) // DIGIT + 2
        self._reserve(DIGIT * count)
        digits = self._coder.decode(uniform(1 << DIGIT), count)
        self._lowest = min(self._lowest, self._coder.num_words())
        self._coder.encode_reverse(digits ^ pad(turn + count)[turn:], uniform(1 << DIGIT))

    def _push_whole(self, value: int) -> None:
        """Pushes any integer from 0 on, as the number of its bits and the bits below the highest."""
        length = value.bit_length()
        if length >= LENGTHS:
            raise UserError(
                "the model is so far from an image that it cannot be coded; give another model, or leave the "
                "image out."
            )
        if length > 1:
            self._coder.encode_reverse(value - (1 << (length - 1)), uniform(1 << (length - 1)))
        self._coder.encode_reverse(length, uniform(LENGTHS))

    def _pop_whole(self) -> int:
        self._reserve(2 * SYMBOL)
        length = self._coder.decode(uniform(LENGTHS))
        first = 1 << max(length - 1, 0)
        value = first + self._coder.decode(uniform(first)) if length > 1 else length
        self._lowest = min(self._lowest, self._coder.num_words())
        return value

    def _push(self, symbols: Any, model: Any, *of_each: Any) -> None:
        self._coder.encode_reverse(symbols.astype(np.int32), model, *of_each)

    def _pop(self, model: Any, *of_each: Any) -> Any:
        self._reserve(SYMBOL * len(of_each[0]))
        symbols = self._coder.decode(model, *of_each)
        self._lowest = min(self._lowest, self._coder.num_words())
        return symbols

    def _reserve(self, bits: int) -> None:
        """Adds random words at the bottom if popping this number of bits could empty the stack."""
        more = 3 + bits // 32 - self._coder.num_words()
        if self._grows and more > 0:
            below = self._random(self._made, self._made + more)
            self._coder = constriction().stream.stack.AnsCoder(
                np.concatenate([below, self._coder.get_compressed()])
            )
            self._made += more
            self._lowest += more

    def _random(self, first: int, last: int) -> Any:
        """Random words, the last at the bottom. They are odd, as 0 cannot be the top of a stack."""
        name = f"{self._seed} {self._number}"
        if first == last:
            return NOTHING
        words = [hashlib.sha256(f"{name} {place}".encode()).digest()[:4] for place in range(first, last)]
        return np.frombuffer(b"".join(words[::-1]), "<u4").astype(np.uint32) | np.uint32(1)


def _groups(deviation: Reals) -> Iterator[tuple[int, Any]]:
    """Yields (reach in integers, positions of the Gaussians that have this reach)."""
    reach = np.exp2(np.ceil(np.log2(np.maximum(REACH * deviation, 1.0)))).astype(np.int64)
    if reach.min() == reach.max():
        yield int(reach[0]), slice(None)
        return
    for one in np.unique(reach):
        yield int(one), np.flatnonzero(reach == one)


def pad(count: int) -> Int[np.ndarray, "count"]:
    """The first digits of an endless sequence of random digits, always the same."""
    return _digits(1 << count.bit_length())[:count]


@functools.cache
def _digits(count: int) -> Int[np.ndarray, "count"]:
    data = hashlib.shake_256(b"vdm").digest(2 * count)
    return np.frombuffer(data, "<u2").astype(np.int32)


def constriction() -> Any:
    """The package constriction, imported late, as few runs need it."""
    import constriction

    return constriction


@functools.cache
def gaussian(reach: int) -> Any:
    """Gaussians over the integers from −reach to reach; the end points include the mass beyond them."""
    return constriction().stream.model.QuantizedGaussian(-reach, reach)


@functools.cache
def uniform(count: int) -> Any:
    """The uniform distribution on 0 … count − 1."""
    return constriction().stream.model.Uniform(count)


@functools.cache
def categorical() -> Any:
    """The distribution over levels with given probabilities."""
    return constriction().stream.model.Categorical(perfect=False)
