"""Where launch scripts of earlier runs find the engine: `python -m runner.engine RUN_FOLDER`."""
