"""Training of candidates as jobs on a Ray cluster, through Ray's Jobs API."""
