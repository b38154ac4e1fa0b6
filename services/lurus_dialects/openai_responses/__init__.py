"""OpenAI Responses: what passes is observed, what is translated is read and written."""
