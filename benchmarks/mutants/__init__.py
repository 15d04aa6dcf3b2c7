"""Mutants of the sources, and a command that shows that the suite catches each of them."""
