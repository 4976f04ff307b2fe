"""Start one worker process per training GPU, on one node or many, watch them and end them together."""
