POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SMALL_NORM = 1e-6


def norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(x)))


def prescale(x):
    peak = jnp.max(jnp.abs(x))
    exponent = lax.bitcast_convert_type(peak, jnp.int32) & 0x7F800000
    power = lax.bitcast_convert_type(exponent, jnp.float32)
    return x / jnp.where(peak > 1e15, power, 1.0)


def equilibrate(x):
    inputs, outputs = x.shape
    target = norm(x) / math.sqrt(outputs)
    columns = jnp.sqrt(jnp.sum(jnp.square(x), axis=0, keepdims=True))
    return x * (target / jnp.maximum(columns, SMALL_NORM))


def polar_express(x, ns_steps):
    inputs, outputs = x.shape
    for i, (a, b, c) in enumerate(POLAR_EXPRESS):
        gram = x @ x.T if outputs > inputs else x.T @ x
        poly = b * gram + c * (gram @ gram)
        following = a * x + (poly @ x if outputs > inputs else x @ poly)
        x = jnp.where(i < ns_steps, following, x)
    return x


def renormalise(x):
    inputs, outputs = x.shape
    return x * (math.sqrt(min(inputs, outputs)) / jnp.maximum(norm(x), SMALL_NORM))


def orthogonal_or_raw(x, knobs):
    x = prescale(x)
    y = equilibrate(x.astype(compute_dtype).astype(jnp.float32))
    y = y / (norm(y) * 1.01 + SMALL_NORM)
    y = polar_express(y.astype(compute_dtype), knobs.ns_steps)
    orthogonal = renormalise(y.astype(jnp.float32))
    raw = renormalise(x)
    mix = knobs.orthogonal_mix
    mixed = jnp.where(mix >= 1.0, orthogonal, mix * orthogonal + (1.0 - mix) * raw)
    return jnp.where(knobs.orthogonalize, mixed, raw)


def momentum_step(x, buffer, knobs):
    buffer = buffer + (1.0 - knobs.momentum) * (x - buffer)
    ahead = x + knobs.momentum * (buffer - x)
    return jnp.where(knobs.nesterov, ahead, buffer), buffer


def normalise_variance(u, second_moment, beta):
    inputs, outputs = u.shape
    axis = 0 if outputs >= inputs else 1
    size = u.shape[axis]
    square = jnp.mean(jnp.square(u), axis=axis, keepdims=True)
    second_moment = second_moment + (1.0 - beta) * (square - second_moment)
    step = lax.rsqrt(jnp.maximum(second_moment, 1e-10))
    before = jnp.sqrt(jnp.sum(square) * size)
    after = jnp.sqrt(jnp.sum(square * size * jnp.square(step)))
    return u * (step * (before / jnp.maximum(after, 1e-10))), second_moment


def direction(gradient, momentum, second_moment, parameter, knobs):
    ahead, buffer_before = momentum_step(gradient, momentum, knobs)
    after = knobs.momentum_placement == 1
    update = orthogonal_or_raw(jnp.where(after, gradient, ahead), knobs)
    smoothed, buffer_after = momentum_step(update, momentum, knobs)
    update = jnp.where(after, smoothed, update)
    buffer = jnp.where(after, buffer_after, buffer_before)
    scaled, updated = normalise_variance(update, second_moment, knobs.second_moment_beta)
    return (
        jnp.where(knobs.second_moment, scaled, update),
        buffer,
        jnp.where(knobs.second_moment, updated, second_moment),
    )
