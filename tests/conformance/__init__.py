"""Suites that every implementation of a contract inherits, the models they run on, and known answers."""

import pytest

pytest.register_assert_rewrite("tests.conformance.comparisons", "tests.conformance.guide_suite")
