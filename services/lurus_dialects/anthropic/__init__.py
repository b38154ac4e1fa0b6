"""Anthropic Messages: what passes is observed, what is translated is read and written."""
