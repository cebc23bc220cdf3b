"""Fine-tunes that run in processes of their own: one folder a job, one at a time, none lost.

    submit(Order) ─▶ folder: job.json, events.jsonl ─▶ process: rows ─▶ train ─▶ register ─▶ result.json

It stands above training and the registry, since a job ends with a registered model.
"""
