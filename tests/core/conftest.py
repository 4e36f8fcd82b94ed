"""Property tests: the same examples on every machine, and no deadlines."""

from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None, max_examples=30)
settings.load_profile("reproducible")
