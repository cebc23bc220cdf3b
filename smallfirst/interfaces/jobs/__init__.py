"""Fine-tuning jobs, each in a process and a folder of its own.

submit(JobSpec) ─▶ folder: job.json, events.jsonl ─▶ process: rows ─▶ train ─▶ register ─▶ result.json
"""
