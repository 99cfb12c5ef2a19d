"""What every room may use: errors, units, durable files, YAML, printing. Imports no other room."""
