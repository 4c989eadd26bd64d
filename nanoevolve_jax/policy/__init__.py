"""What can evolve: the spec, the gate, the optimizer mathematics, the mutations."""
