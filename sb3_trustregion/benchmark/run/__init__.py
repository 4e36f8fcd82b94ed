"""A grid of runs: what it consists of, how it is carried out, how each run is made and measured."""
