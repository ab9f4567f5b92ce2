"""Owns what people type. Each command is imported when it is used: `--help` loads none of the machinery."""
