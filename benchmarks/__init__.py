"""One command for each figure or table that is published."""
