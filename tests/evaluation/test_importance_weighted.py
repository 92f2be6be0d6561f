"""The importance-weighted bound."""

import numpy as np

from vdm.evaluation.importance_weighted import importance_bound


def test_importance_bound_by_hand():
    log_w = np.log(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_allclose(importance_bound(log_w, 1), log_w)
    np.testing.assert_allclose(importance_bound(log_w, 2), np.log([[2.0, 3.0]]))
    far = importance_bound(np.array([-5000.0, -5000.0]), 2)
    np.testing.assert_allclose(far, [-5000.0])
