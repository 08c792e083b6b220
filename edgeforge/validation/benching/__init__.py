"""What `edgeforge.validation.bench` is made of: the runs, this machine's limits, its surroundings, and the doubts."""
