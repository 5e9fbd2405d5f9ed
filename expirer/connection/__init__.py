"""Turns settings into clients, and errors into words."""
