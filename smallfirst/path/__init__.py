"""The whole path, stage by stage: check, train, evaluate, gate, promote, calibrate, report; `run` is its contents."""
