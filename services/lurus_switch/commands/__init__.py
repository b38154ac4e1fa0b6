"""The commands of `lurus`, one module a noun."""
