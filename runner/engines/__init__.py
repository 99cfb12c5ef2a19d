"""What trains: one folder an engine, the protocol they speak, and the registry."""
