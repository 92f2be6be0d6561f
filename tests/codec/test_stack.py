"""The stack against the Gaussian itself, and decoding against encoding."""

import numpy as np
import pytest
from scipy import stats

from vdm.codec.stack import Damaged, Stack


def gaussians(count, seed=0):
    """Means and standard deviations of many magnitudes."""
    random = np.random.default_rng(seed)
    return random.normal(size=count) * 1000.0, np.exp(random.uniform(-3.0, 7.0, count))


def test_all_is_undone_in_reverse():
    stack, random = Stack(0, 0), np.random.default_rng(1)
    (mean, deviation), (other, wide) = gaussians(40), gaussians(40, 2)
    levels, probabilities = random.integers(0, 17, 30), random.dirichlet(np.full(17, 0.1), 30)
    far = np.rint(other + wide * random.normal(size=40) * 10.0 ** random.integers(0, 4, 40)).astype(int)
    drawn = stack.draw(mean, deviation, 3)
    stack.push_levels(levels, probabilities)
    again = stack.draw(other, wide, 4)
    stack.push(drawn, mean + deviation, 2.0 * deviation)
    stack.push(far, other, wide)

    words, initial = stack.words()
    stack = Stack(0, 0, words)
    np.testing.assert_array_equal(stack.pop(other, wide), far)
    np.testing.assert_array_equal(stack.pop(mean + deviation, 2.0 * deviation), drawn)
    stack.give_back(again, other, wide, 4)
    np.testing.assert_array_equal(stack.pop_levels(probabilities), levels)
    with pytest.raises(Damaged):
        stack.lowest(initial)
    stack.give_back(drawn, mean, deviation, 3)
    assert len(stack.lowest(initial)) == 0
    for other in (initial + 1, 10**12):
        with pytest.raises(Damaged):
            stack.lowest(other)


def test_draws_are_of_the_gaussian_and_take_its_entropy():
    stack, deviation, count = Stack(0, 0), 20.0, 20_000
    of_each = np.full(count, 0.3), np.full(count, deviation)
    before = stack.bits
    drawn = stack.draw(*of_each, 0)
    # Spread uniformly within their cells, the numbers are draws from the Gaussian.
    spread = drawn + np.random.default_rng(0).uniform(-0.5, 0.5, count)
    assert stats.kstest((spread - 0.3) / deviation, "norm").pvalue > 1e-3
    entropy = np.log2(deviation * np.sqrt(2.0 * np.pi * np.e))
    taken = (before - stack.bits) / count
    assert taken == pytest.approx(entropy, abs=4.0 / np.sqrt(2.0 * count) / np.log(2.0))


def test_a_draw_does_not_hang_on_what_was_just_pushed():
    stack = Stack(0, 0)
    of_each = np.zeros(4000), np.full(4000, 16.0)
    pushed = np.rint(np.random.default_rng(0).normal(size=4000) * 16.0).astype(int)
    stack.draw(*of_each, 0)
    stack.push(pushed, *of_each)
    drawn = stack.draw(*of_each, 1)
    assert abs(np.corrcoef(pushed, drawn)[0, 1]) < 4.0 / np.sqrt(4000)


@pytest.mark.parametrize("away", [0.0, 3.0, 7.9, 30.0, 1e4])
def test_what_lies_far_away_costs_its_gaussian_or_less(away):
    stack = Stack(0, 0)
    number = np.array([round(away * 16.0)])
    before = stack.bits
    stack.push(np.repeat(number, 50), np.zeros(50), np.full(50, 16.0))
    cost, of_gaussian = (stack.bits - before) / 50, -stats.norm.logpdf(number[0], 0.0, 16.0) / np.log(2.0)
    assert cost < of_gaussian + 0.1
    assert cost > of_gaussian - 0.1 or away > 6.0  # beyond REACH it may cost less
    assert 0.0 < cost < 50.0


def test_no_more_random_words_than_are_drawn():
    stack = Stack(0, 0)
    mean, deviation = np.zeros(100), np.full(100, 16.0)
    stack.draw(mean, deviation, 0)
    words, initial = stack.words()
    entropy = 100 * np.log2(16.0 * np.sqrt(2.0 * np.pi * np.e))
    # The stack's top has 64 bits, and scrambling takes whole digits.
    assert len(words) <= initial and entropy < 32 * initial < entropy + 200.0
    empty = Stack(0, 0)
    empty.push(np.arange(100), mean, deviation)
    assert empty.words()[1] == 0


def test_the_lowest_words_are_drawn_before_random_ones_and_come_back():
    mean, deviation = np.zeros(100), np.full(100, 16.0)
    entropy = 100 * np.log2(16.0 * np.sqrt(2.0 * np.pi * np.e)) / 32  # words
    for given in (np.arange(11, dtype=np.uint32), np.zeros(11, np.uint32), np.full(40, 5, np.uint32)):
        stack = Stack(0, 0, lowest=given)
        assert stack.bits == 0.0
        drawn = stack.draw(mean, deviation, 0)
        assert stack.bits == pytest.approx(-32.0 * entropy, rel=0.1)
        words, initial = stack.words()
        # The stack's top has 64 bits, and scrambling takes whole digits.
        assert initial == 0 if len(given) > 30 else entropy < len(given) + initial < entropy + 6.0
        again = Stack(0, 0, words)
        again.give_back(drawn, mean, deviation, 0)
        np.testing.assert_array_equal(again.lowest(initial), given)


def test_numbers_that_were_not_drawn_are_refused():
    with pytest.raises(Damaged):
        Stack(0, 0).give_back(np.array([1000]), np.zeros(1), np.ones(1), 0)


def test_the_random_words_are_those_of_their_seed():
    stacks = [Stack(*of) for of in ((0, 0), (0, 0), (0, 1), (1, 0))]
    drawn = [stack.draw(np.zeros(20), np.full(20, 16.0), 0).tolist() for stack in stacks]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] and drawn[0] != drawn[3]
