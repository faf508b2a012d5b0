"""What people see: bars while a run goes on, and the table at its end."""
