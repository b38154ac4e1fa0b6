"""Measurements of what the gateway costs."""
