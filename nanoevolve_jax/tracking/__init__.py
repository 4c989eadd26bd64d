"""Who else hears of a run while it is under way: TensorBoard, Weights & Biases, MLflow."""
