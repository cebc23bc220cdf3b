"""Money after go-live: the machines, used and needed, what was saved and when that pays, the monthly statement."""
