"""The peers' own programs, each run by the interpreter that has its library."""
