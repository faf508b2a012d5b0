"""What stages hand to each other: rows, tables, checks."""
