"""The use cases: plain functions that check, start, follow and measure runs."""
