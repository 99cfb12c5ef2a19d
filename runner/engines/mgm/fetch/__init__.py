"""Download what a run of the MGM toolkit needs into runner's cache. No torch."""
