"""Train with several processes: data-parallel or sharded, started by Ray Train."""
