"""What runs, in order. No ML code here, and nothing that imports torch."""
