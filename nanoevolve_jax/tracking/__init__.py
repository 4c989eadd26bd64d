"""Trackers of a run in progress: TensorBoard, Weights & Biases and MLflow."""
