"""Losses compared with an independent NumPy log-softmax, and the rules for counted targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoevolve_jax.model import loss


def numpy_losses(logits, targets):
    """Returns losses by a float64 log-softmax that is independent of the code under test."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    losses = np.zeros(targets.shape)
    for place, target in np.ndenumerate(targets):
        if target != -1:
            losses[place] = -log_probs[place][target]
    return losses


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), ignored=st.floats(0, 1), scale=st.sampled_from([0.1, 5, 15]))
def test_losses_equal_an_independent_log_softmax(seed, ignored, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((2, 5, 7))).astype(np.float32)
    targets = rng.integers(0, 7, (2, 5)).astype(np.int32)
    targets[rng.random((2, 5)) < ignored] = -1
    want = numpy_losses(logits, targets)
    np.testing.assert_allclose(loss.token_losses(logits, targets), want, atol=1e-5)
    counted = max((targets != -1).sum(), 1)
    np.testing.assert_allclose(loss.mean_loss(logits, targets), want.sum() / counted, atol=1e-5)


def test_ignored_targets_get_no_loss_and_no_gradient():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 6)), jnp.float32)
    targets = jnp.array([[3, -1, 5, -1]])
    gradient = jax.grad(loss.mean_loss)(logits, targets)
    assert not np.asarray(loss.token_losses(logits, targets))[0, [1, 3]].any()
    assert not np.asarray(gradient)[0, [1, 3]].any()
    assert np.asarray(gradient)[0, [0, 2]].all()


def test_a_batch_that_counts_no_target_has_loss_0_and_gradient_0():
    logits = jnp.ones((2, 3, 5))
    targets = jnp.full((2, 3), -1)
    value, gradient = jax.value_and_grad(loss.mean_loss)(logits, targets)
    assert value == 0 and not np.asarray(gradient).any()
    nats, size = loss.nats_and_bytes(loss.token_losses(logits, targets), targets, jnp.ones(5, int))
    assert nats == 0 and size == 0 and loss.bits_per_byte(nats, size) == jnp.inf


def test_special_tokens_and_ignored_targets_drop_out_of_both_sums():
    token_bytes = jnp.array([0, 1, 4])
    targets = jnp.array([[0, 1, 2, -1, 2]])
    losses = jnp.array([[100.0, 1.0, 2.0, 1000.0, 3.0]])
    nats, size = loss.nats_and_bytes(losses, targets, token_bytes)
    assert nats == 6.0 and size == 9
    np.testing.assert_allclose(loss.bits_per_byte(nats, size), 6 / 9 / np.log(2), rtol=1e-6)


@pytest.mark.parametrize("vocab", [2, 256])
def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary(vocab):
    logits = jnp.zeros((2, 8, vocab))
    targets = jnp.ones((2, 8), jnp.int32)
    losses = loss.token_losses(logits, targets)
    bits = loss.bits_per_byte(*loss.nats_and_bytes(losses, targets, jnp.ones(vocab, jnp.int32)))
    np.testing.assert_allclose(bits, np.log2(vocab), rtol=1e-6)
