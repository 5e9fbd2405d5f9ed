"""Reads the settings: connection, layout, behaviour."""
