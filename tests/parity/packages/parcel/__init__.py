"""A package for autodiscovery."""
