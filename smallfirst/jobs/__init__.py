"""Fine-tuning jobs, each in a process and a folder of its own.

    submit(Order) ─▶ folder: job.json, events.jsonl ─▶ process: rows ─▶ train ─▶ register ─▶ result.json

It stands above training and the registry, since a job ends with a registered model.
"""
