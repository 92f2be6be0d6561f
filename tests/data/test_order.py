"""The order of training."""

import numpy as np

from vdm.data.batches import host_positions, order


def test_it_is_a_permutation_each_epoch_and_a_function_of_position():
    whole = order(3, np.arange(25), 10)
    for epoch in range(2):
        assert sorted(whole[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(whole[:10]) != list(whole[10:20])
    np.testing.assert_array_equal(order(3, np.arange(7, 19), 10), whole[7:19])
    assert list(order(4, np.arange(10), 10)) != list(whole[:10])


def test_hosts_share_a_batch():
    parts = [host_positions(5, 12, 3, host) for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), 60 + np.arange(12))
