"""Statistical evidence for results: calibration, confirmation, attribution and transfer."""
