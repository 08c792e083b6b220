"""What validations store between runs stays a test's own."""

from validation.conftest import own_store

__all__ = ["own_store"]
