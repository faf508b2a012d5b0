"""What people see: bars while a run goes on, the table at its end, the page to show."""
