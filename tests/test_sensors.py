"""The sensors measure the intended quantities on signals with known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoevolve_jax.policy import sensors as sensing
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, Sensors
from nanoevolve_jax.policy.transform import evolved_muon


def run_averages(signals, total_steps, ema_beta=0.98):
    """Yields the averages after each of a list of signals."""
    averages = sensing.init_averages()
    everything = sensing.Signals(*[True] * len(sensing.Signals._fields))
    for signal in signals:
        averages = sensing.update_averages(averages, signal, everything, ema_beta, total_steps)
        yield averages


def signals_of(losses):
    return [
        sensing.Signals(np.log(loss), np.log(t + 1.0), 0.0, 0.0, 0.0)
        for t, loss in enumerate(losses)
    ]


def test_averages_equal_the_weighted_mean_written_out():
    values = np.random.default_rng(0).normal(size=20)
    *_, averages = run_averages([sensing.Signals(v, 0, 0, 0, 0) for v in values], 100, 0.9)
    for row, window in enumerate([1.0, sensing.SLOW_WINDOW]):
        beta = 0.9 ** (10 / window)  # 1000 reference steps / 100 steps
        weights = beta ** np.arange(19, -1, -1)
        expected = np.sum(weights * values) / np.sum(weights)
        np.testing.assert_allclose(averages.mean(row).log_loss, expected, rtol=1e-5)


def test_a_power_law_reads_its_exponent_at_every_step():
    losses = [9.0 * (t + 1.0) ** -0.3 for t in range(200)]
    for step, averages in enumerate(run_averages(signals_of(losses), 200)):
        raw = sensing.raw_sensors(averages, np.log(9.0), step, 200)
        if step > 2:
            assert raw.loss_improvement_ema == pytest.approx(0.3, abs=2e-3)
        assert jnp.isfinite(raw.loss_improvement_ema)
    assert raw.step_fraction == pytest.approx(199 / 200)


def test_the_loss_sensor_is_the_share_of_the_first_loss_that_is_gone():
    *_, averages = run_averages(signals_of([8.0] + [2.0] * 400), 400, 0.9)
    raw = sensing.raw_sensors(averages, np.log(8.0), 400, 400)
    assert raw.loss_ema == pytest.approx(0.75, abs=1e-4)


def test_one_observation_is_believed_at_once():
    averages = next(run_averages([sensing.Signals(3.0, 0.0, 5.0, 0.0, 0.7)], 1000))
    for row in range(2):
        assert averages.mean(row).log_loss == pytest.approx(3.0)
        assert averages.mean(row).alignment == pytest.approx(0.7)


def test_an_observation_that_does_not_exist_leaves_no_trace():
    unseen = sensing.Signals(True, True, True, False, False)
    signal = sensing.Signals(1.0, 1.0, 1.0, 99.0, 99.0)
    averages = sensing.update_averages(sensing.init_averages(), signal, unseen, 0.9, 100)
    assert averages.mean(0).alignment == 0
    assert averages.weight[0, 4] == 0


def test_cosine_agrees_with_numpy_and_survives_zeros():
    rng = np.random.default_rng(0)
    a, b = ([rng.normal(size=n).astype(np.float32) for n in (5, 7)] for _ in range(2))
    x, y = np.concatenate(a), np.concatenate(b)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert sensing.cosine(a, b) == pytest.approx(expected, abs=1e-6)
    assert sensing.cosine(a, [np.zeros(5), np.zeros(7)]) == 0


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e38, np.inf])
def test_logarithms_saturate(value):
    assert jnp.isfinite(sensing.safe_log(value))


def test_a_nan_is_not_hidden():
    assert jnp.isnan(sensing.safe_log(jnp.nan))


def test_the_gate_is_the_documented_formula():
    rng = np.random.default_rng(1)
    values, weights = (Sensors(*rng.normal(size=len(Sensors._fields))) for _ in range(2))
    control = ANNEALING.control._replace(coefficients=weights, bias=0.3)
    drive = 0.3 + np.dot(control.coefficients, values)
    expected = 1 / (1 + np.exp(-control.sharpness * drive))
    assert sensing.gate_value(control, values) == pytest.approx(expected, rel=1e-5)


def drive_optimizer(grads, losses, total_steps, spec=ANNEALING):
    """Returns the sensors at every step of a run on given gradients and losses."""
    params = {"w": jnp.asarray(np.random.default_rng(5).normal(size=(16, 32)), jnp.float32)}
    optimizer = evolved_muon(spec, 0.01, total_steps=total_steps)
    update, state, seen = jax.jit(optimizer.update), optimizer.init(params), []
    for grad, loss in zip(grads, losses, strict=True):
        updates, state = update({"w": grad}, state, params, value=loss)
        params = jax.tree.map(jnp.add, params, updates)
        seen.append(np.asarray(state[0].sensors))
    return np.asarray(seen)


def test_multiplying_the_loss_by_eight_changes_no_sensor():
    rng = np.random.default_rng(2)
    common = rng.normal(size=(16, 32))
    grads = [jnp.asarray(common + rng.normal(size=(16, 32)), jnp.float32) for _ in range(30)]
    losses = np.linspace(7.0, 3.0, 30) + 0.1 * rng.normal(size=30)
    plain = drive_optimizer(grads, losses, 30)
    scaled = drive_optimizer([8 * g for g in grads], 8 * losses, 30)
    np.testing.assert_allclose(scaled, plain, atol=1e-4)


def test_a_norm_that_grows_reads_positive_and_one_that_shrinks_negative():
    rng = np.random.default_rng(3)
    grads = [jnp.asarray(rng.normal(size=(16, 32)), jnp.float32) for _ in range(40)]
    column = Sensors._fields.index("grad_norm_ema")
    grow = drive_optimizer([g * 1.1**t for t, g in enumerate(grads)], [1.0] * 40, 40)
    shrink = drive_optimizer([g * 0.9**t for t, g in enumerate(grads)], [1.0] * 40, 40)
    assert np.all(grow[5:, column] > 0.05)
    assert np.all(shrink[5:, column] < -0.05)


def test_sensors_stay_within_their_bounds_and_telemetry_shows_what_was_applied():
    rng = np.random.default_rng(4)
    grads = [jnp.asarray(10.0 ** rng.integers(-9, 9) * rng.normal(size=(16, 32)), jnp.float32)
             for _ in range(20)]  # fmt: skip
    seen = drive_optimizer(grads, 10.0 ** rng.uniform(-3, 3, 20), 20, NANOCHAT)
    assert np.all(np.abs(seen) <= 1)
    assert np.all(np.isfinite(seen))
