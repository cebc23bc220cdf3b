"""Before a run: problems of the rows, what gate and certificate can show with them, time, memory and cost."""
