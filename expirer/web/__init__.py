"""What monitors and people look at: metrics, probes and a page, served by a process of its own."""
