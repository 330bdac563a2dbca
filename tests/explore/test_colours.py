# Colours: components equal numpy's, signs are fixed, and scales read in order.
from __future__ import annotations

import numpy as np
import pytest

from featx.explore import colours


def leaning(cells, channels, seed=0):
    """Features whose directions differ in variance, and whose scores lean to a side."""
    generator = np.random.default_rng(seed)
    scores = generator.gamma(2.0, 1.0, (cells, channels)) * 2.0 ** -np.arange(channels)
    rotation = np.linalg.qr(generator.standard_normal((channels, channels)))[0]
    return (scores @ rotation.T + 5).astype(np.float32)


@pytest.mark.parametrize(("cells", "channels"), [(300, 20), (40, 600), (700, 600), (4000, 900)])
def test_components_equal_those_of_numpy(cells, channels):
    features = leaning(cells, channels)
    found = colours.components(features, 3)
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.variance, singular[:3] ** 2 / cells, rtol=1e-6)
    np.testing.assert_allclose(np.abs((rows[:3] * found.basis.T).sum(1)), 1, atol=1e-6)
    assert found.explained == pytest.approx((singular[:3] ** 2).sum() / (singular**2).sum())
    assert (((centred @ found.basis) ** 3).sum(0) > 0).all()


def test_the_order_of_cells_changes_no_component():
    features = leaning(2000, 700)
    shuffled = features[np.random.default_rng(1).permutation(len(features))]
    np.testing.assert_allclose(colours.components(features).basis, colours.components(shuffled).basis, atol=1e-6)


def test_directions_without_variance_are_left_out():
    one = np.outer(np.arange(10.0), [3.0, 4.0, 0.0])
    assert colours.components(one).basis.shape == (3, 1)
    assert colours.components(np.ones((5, 3))).basis.shape == (3, 0)
    painted = colours.colours(one)(one)
    assert (painted[:, 1:] == 128).all()
    assert (np.diff(painted[:, 0].astype(int)) > 0).all()
    assert (colours.colours(np.ones((5, 3)))(np.ones((5, 3))) == 128).all()


def test_one_cell_far_out_does_not_take_the_colours_of_all_others():
    features = leaning(500, 8)
    features[0] += 1e4 * (features[1] - features[2])
    assert colours.colours(features)(features[1:]).std(0).max() > 40


def test_a_scale_becomes_lighter_from_end_to_end():
    painted = colours.scaled(np.linspace(-1, 3, 50), 0.0, 2.0).astype(float)
    light = painted @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) >= 0).all()
    assert (painted[:12] == painted[0]).all()  # below the scale
    assert (painted[-12:] == painted[-1]).all()
    assert np.isfinite(colours.scaled(np.ones(3), 1.0, 1.0)).all()


def test_strength_is_a_length():
    features = leaning(40, 7).reshape(5, 8, 7)
    np.testing.assert_allclose(colours.strength(features), np.linalg.norm(features, axis=-1), rtol=1e-6)
