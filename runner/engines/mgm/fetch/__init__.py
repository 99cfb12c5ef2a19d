"""What a run of the MGM toolkit needs, brought into runner's cache. No torch."""
