"""Expires what is due: when, what, and what is logged and counted."""
