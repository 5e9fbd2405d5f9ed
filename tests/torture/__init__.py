"""Every fault that we can think of, each under load; at the end what the checkouts know and what Redis holds agree."""
