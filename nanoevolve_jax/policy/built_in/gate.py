def gate(sensors, features, control):
    weights = control.coefficients
    drive = (
        weights.loss_ema * sensors.loss_ema
        + weights.loss_improvement_ema * sensors.loss_improvement_ema
        + weights.grad_norm_ema * sensors.grad_norm_ema
        + weights.update_ratio_ema * sensors.update_ratio_ema
        + weights.grad_alignment_ema * sensors.grad_alignment_ema
        + weights.step_fraction * sensors.step_fraction
        + sum(features)
    )
    return jax.nn.sigmoid(control.sharpness * (control.bias + drive))
