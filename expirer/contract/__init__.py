"""Names what is in Redis: keys, control, scripts, texts."""
