"""What an operator does by hand, from the command line."""
