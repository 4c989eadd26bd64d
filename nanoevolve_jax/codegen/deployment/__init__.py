"""Training of candidates as jobs of a Ray cluster, sent and fetched through Ray's Jobs API."""
