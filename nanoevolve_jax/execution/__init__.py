"""How a candidate runs: schedules, the training segment, populations, evaluation."""
