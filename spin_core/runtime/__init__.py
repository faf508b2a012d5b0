"""What every stage runs on: children, devices, progress, errors."""
