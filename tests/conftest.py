"""Hypothesis without deadlines: a slow machine is not a wrong answer."""

from hypothesis import settings

settings.register_profile("attnplan", deadline=None)
settings.load_profile("attnplan")
