"""What every stage rests on: the engine, where files lie, which code a result rests on, and params.yaml as it is read."""
