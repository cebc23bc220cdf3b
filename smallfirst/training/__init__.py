"""Fine-tune a model: batches, loss, loop, checkpoints, runs."""
