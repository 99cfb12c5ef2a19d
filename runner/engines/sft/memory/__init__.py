"""The memory of a plan of the native engine, as far as no torch is needed."""
