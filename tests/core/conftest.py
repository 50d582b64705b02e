"""Hypothesis for the core: no deadlines, no files left behind."""

from hypothesis import settings

settings.register_profile("core", max_examples=150, deadline=None, database=None, print_blob=True)
settings.load_profile("core")
