"""What several folders of tests use: places to call `runner` in, stubs, shared runs, costs."""
