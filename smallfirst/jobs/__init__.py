"""Fine-tuning jobs, each in a process and a folder of its own.

    submit(JobSpec) ─▶ folder: job.json, events.jsonl ─▶ process: rows ─▶ train ─▶ register ─▶ result.json

This package is public: plugins submit and read jobs through it. It may use training and the registry, since a job
ends with a registered model.
"""
