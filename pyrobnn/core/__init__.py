"""Foundations: compatibility with Pyro, argument checks, random state, schedules, storage."""
