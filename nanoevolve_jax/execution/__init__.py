"""Training of candidates: schedules, training segments, populations, engines and checkpoints."""
