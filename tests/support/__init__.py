"""What several folders of tests use: places to call `runner` in, a stub trainer, runs, costs."""
